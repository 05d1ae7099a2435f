"""Failpoints: named places in the life of a message or a token at which an actor can be made to die.

They are for `tools.chaos` and do nothing in a normal run. What a process does at them is decided once,
when it starts, by the environment variable TROUPE_FAILPOINTS, a list of rules separated by ";":

    ACTOR/POINT=ACTION[@PASSAGE][xN | #I]         scheduler.0/scheduler.committed=kill@7x20

reads: in the actor scheduler.0, at the 7th passage (default: the first) of the point `scheduler.committed`,
SIGKILL itself, in each of its first 20 incarnations (#20: only in the 20th; default: only in the first).
ACTOR may hold the wildcards of a shell. ACTION is `kill`, `stop` (SIGSTOP itself) or `pause:MS`.

Without the variable `reach` is an empty function, `around` hands back the function that it was given
and `watched` the words that it was given, so that what happens for every message costs nothing at all.
"""

from __future__ import annotations

import enum
import fnmatch
import functools
import os
import re
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ParamSpec, TypeVar, assert_never, cast

P = ParamSpec("P")
R = TypeVar("R")

VARIABLE = "TROUPE_FAILPOINTS"

BEFORE, AFTER = ".before", ".after"

EVERYBODY = ("executor", "scheduler", "tokenizer", "frontend", "balancer")


@dataclass(frozen=True)
class Point:
    """A failpoint. kinds: the actors that pass it. starting: it is passed once in an incarnation, and before
    that is ready."""

    name: str
    kinds: tuple[str, ...]
    sentence: str
    starting: bool = False


POINTS = (
    Point("ring.tail.before", EVERYBODY, "a record is written whole and not yet published"),
    Point("ring.tail.after", EVERYBODY, "a record is published and nobody has been told"),
    Point("ring.head.before", EVERYBODY, "mail is copied out and not yet acknowledged"),
    Point("ring.head.after", EVERYBODY, "mail is acknowledged and not yet handled"),
    Point("bell.before", EVERYBODY, "all mail of a call is published and the bell is silent"),
    Point("bell.after", EVERYBODY, "the bell has been rung"),
    Point("send.Generate.before", ("frontend",), "slots are claimed and the request was not sent"),
    Point("send.Generate.after", ("frontend",), "the request was sent and its client knows nothing"),
    Point("send.Submit.before", ("tokenizer", "balancer"), "the request is stored and was not submitted"),
    Point("send.Submit.after", ("tokenizer", "balancer"), "the request was submitted"),
    Point("send.Plan.before", ("scheduler",), "a step is planned and was not sent"),
    Point("send.Plan.after", ("scheduler",), "a step is in flight"),
    Point("send.StepDone.before", ("executor",), "a step is done and was not reported"),
    Point("send.StepDone.after", ("executor",), "a step was reported"),
    Point("send.Tokens.before", ("scheduler",), "tokens are committed and were not sent"),
    Point("send.Tokens.after", ("scheduler",), "tokens were sent and the next step is not planned"),
    Point("send.Deltas.before", ("tokenizer",), "text is ready and was not sent"),
    Point("send.Deltas.after", ("tokenizer",), "text was sent and is not noted as delivered"),
    Point("send.StopHere.before", ("tokenizer",), "a stop string was found and the scheduler not told"),
    Point("send.StopHere.after", ("tokenizer",), "a stop string was found and the client not told"),
    Point("send.ExecutorReady.before", ("executor",), "the executor is loaded and unknown", starting=True),
    Point("send.ExecutorReady.after", ("executor",), "the executor is announced, not ready", starting=True),
    Point("ledger.state.before", ("frontend",), "a slot is about to be opened, or closed"),
    Point("ledger.state.after", ("frontend",), "a slot is open and unknown, or closed and still full"),
    Point("ledger.request.before", ("tokenizer",), "a request is written and not yet to be seen"),
    Point("ledger.request.after", ("tokenizer",), "a request is in the ledger"),
    Point("ledger.delivered.before", ("tokenizer",), "text was sent and does not count as delivered"),
    Point("ledger.delivered.after", ("tokenizer",), "text counts as delivered"),
    Point("ledger.extras.before", ("scheduler",), "logprobs are written and not yet measured"),
    Point("ledger.extras.after", ("scheduler",), "logprobs are measured and their token not committed"),
    Point("ledger.commit.before", ("scheduler",), "tokens are written and not yet committed"),
    Point("ledger.commit.after", ("scheduler",), "one choice of a step is committed"),
    Point("ledger.assign.before", ("balancer",), "a replica is chosen and not noted"),
    Point("ledger.assign.after", ("balancer",), "a replica is noted and has not been sent the request"),
    Point("scheduler.recovered", ("scheduler",), "the ledger is read and nothing planned", starting=True),
    Point("scheduler.committed", ("scheduler",), "all choices of a step are committed, none was sent"),
    Point("executor.launched", ("executor",), "a step is on the device and not finished"),
    Point("executor.finished", ("executor",), "a step is finished and its result still here"),
    Point("tokenizer.recovered", ("tokenizer",), "all streams are rebuilt", starting=True),
    Point("balancer.recovered", ("balancer",), "what was on its way was sent again", starting=True),
    Point("frontend.recovered", ("frontend",), "what its predecessor left is looked after", starting=True),
)

ORDERED_ABOUT = ("scheduler", "executor", "tokenizer")

ORDERED = (
    Point("order.before", ORDERED_ABOUT, "an order has come and is not carried out"),
    Point("order.after", ORDERED_ABOUT, "an order is carried out and not answered"),
    Point("weights.stage", ("executor",), "new weights are to be made ready"),
    Point("weights.staged", ("executor",), "new weights are ready and nobody has been told"),
    Point("weights.commit", ("executor",), "new weights are decided on and do not serve yet"),
    Point("weights.committed", ("executor",), "new weights serve and nobody has been told"),
)
"""Failpoints that are passed only where an administrator wishes something."""


class Action(enum.StrEnum):
    """What happens at a point."""

    KILL = "kill"
    STOP = "stop"
    PAUSE = "pause"


@dataclass(frozen=True)
class Rule:
    """Do `action` at passage number `passage` of `point` in incarnations `first` .. `last` of the actors
    whose names match `actor`. seconds: of a pause."""

    actor: str
    point: str
    action: Action
    passage: int = 1
    first: int = 1
    last: int = 1
    seconds: float = 0.0


_RULE = re.compile(
    r"(?P<actor>[^/=;]+)/(?P<point>[\w.]+)=(?P<action>kill|stop|pause:(?P<ms>\d+))"
    r"(@(?P<passage>[1-9]\d*))?(x(?P<times>[1-9]\d*)|\#(?P<only>[1-9]\d*))?"
)


def parse(text: str) -> tuple[Rule, ...]:
    """The rules of a specification. Raises ValueError, with a sentence, for what is not one."""
    return tuple(_rule(part.strip()) for part in text.split(";") if part.strip())


def _rule(text: str) -> Rule:
    match = _RULE.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is no failpoint rule: ACTOR/POINT=kill|stop|pause:MS[@PASSAGE][xN|#I].")
    if match["point"] not in {point.name for point in (*POINTS, *ORDERED)}:
        raise ValueError(f"there is no failpoint {match['point']!r}.")
    first = int(match["only"] or 1)
    return Rule(
        match["actor"],
        match["point"],
        Action(match["action"].partition(":")[0]),
        int(match["passage"] or 1),
        first,
        int(match["only"] or match["times"] or 1),
        int(match["ms"] or 0) / 1000,
    )


def perform(rule: Rule) -> None:
    """Do what a rule says, to this process."""
    match rule.action:
        case Action.KILL:
            os.kill(os.getpid(), signal.SIGKILL)
        case Action.STOP:
            os.kill(os.getpid(), signal.SIGSTOP)
        case Action.PAUSE:
            time.sleep(rule.seconds)
        case other:
            assert_never(other)


class Trap:
    """A process's rules, and how often each point was passed. Inert until the process is an actor."""

    def __init__(self, rules: Iterable[Rule], deed: Callable[[Rule], None] = perform) -> None:
        self._rules = tuple(rules)
        self._deed = deed
        self._mine: dict[tuple[str, int], Rule] = {}
        self._passed: Counter[str] = Counter()

    def begin(self, actor: str, incarnation: int) -> None:
        """From now on this process is that incarnation of `actor`."""
        self._mine = {
            (rule.point, rule.passage): rule
            for rule in self._rules
            if fnmatch.fnmatchcase(actor, rule.actor) and rule.first <= incarnation <= rule.last
        }

    def reach(self, point: str) -> None:
        """The process passes a point."""
        if self._mine:
            self._passed[point] += 1
            rule = self._mine.get((point, self._passed[point]))
            if rule is not None:
                self._deed(rule)


class Watched:
    """Words in shared memory, each store of a named one between two points."""

    def __init__(
        self, words: memoryview, names: Mapping[int, str], stride: int, trap: Callable[[str], None]
    ) -> None:
        self._words, self._names, self._stride, self._reach = words, names, stride, trap

    def __getitem__(self, index: int) -> int:
        value: int = self._words[index]
        return value

    def __setitem__(self, index: int, value: int) -> None:
        name = self._names.get(index % self._stride)
        if name is None:
            self._words[index] = value
            return
        self._reach(name + BEFORE)
        self._words[index] = value
        self._reach(name + AFTER)


def _nothing(*_: object) -> None:
    """Nobody wants to know."""


_TRAP = Trap(parse(os.environ[VARIABLE])) if os.environ.get(VARIABLE) else None

trap: Callable[[str], None] | None = _TRAP.reach if _TRAP else None
"""`reach`, for compiled code; None without the variable."""
reach: Callable[[str], None] = _TRAP.reach if _TRAP else _nothing
begin: Callable[[str, int], None] = _TRAP.begin if _TRAP else _nothing


def watched(words: memoryview, names: Mapping[int, str], stride: int) -> memoryview:
    """`words`, with points before and after every store to word `index` where `names` has index % stride."""
    return cast(memoryview, Watched(words, names, stride, _TRAP.reach)) if _TRAP else words


def around(name: str | Callable[..., str]) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Decorator: a point before and a point after each call; `name` may be made of the arguments."""

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        return between(name, function, _TRAP.reach) if _TRAP else function

    return decorate


def between(
    name: str | Callable[..., str], function: Callable[P, R], trap: Callable[[str], None]
) -> Callable[P, R]:
    """`function` between two points."""

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> R:
        point = name if isinstance(name, str) else name(*args)
        trap(point + BEFORE)
        result = function(*args, **kwargs)
        trap(point + AFTER)
        return result

    return wrapper
