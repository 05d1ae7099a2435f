"""Failpoints: the rules, the counting, that all of them exist, and that a normal run pays nothing."""

from __future__ import annotations

import ast
import os
import pathlib
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from protocols import messages
from runtime import failpoints
from runtime.channel import Outbox
from runtime.doorbell import Doorbell
from runtime.failpoints import ORDERED, POINTS, Action, Rule, Trap, Watched, between, parse
from runtime.ledger import Ledger
from runtime.ring import Ring

ROOT = pathlib.Path(__file__).resolve().parents[2]
EVERY = (*POINTS, *ORDERED)
NAMES = {point.name for point in EVERY}


def _calls(function: str) -> Iterator[ast.Call]:
    for layer in ("runtime", "actors"):
        for path in sorted((ROOT / layer).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text())):
                if (
                    isinstance(node, ast.Call)
                    and isinstance(node.func, ast.Name)
                    and node.func.id == function
                ):
                    yield node


def _both(name: str) -> set[str]:
    return {f"{name}.before", f"{name}.after"}


def _reached() -> set[str]:
    """Every point that the source passes."""
    found = {ast.literal_eval(call.args[0]) for call in _calls("reach")}
    for call in _calls("around"):
        if isinstance(call.args[0], ast.Constant):
            found |= _both(str(call.args[0].value))
    strings = {text for call in _calls("watched") for text in _texts(call.args[1])}
    for text in strings:
        found |= _both(text)
    return found


def _texts(names: ast.expr) -> Iterator[str]:
    """The names in a dict that is written in place, or else that of the ledger's table."""
    if isinstance(names, ast.Dict):
        yield from (ast.literal_eval(value) for value in names.values)
        return
    from runtime.ledger_memory import _POINTS

    assert isinstance(names, ast.Name) and names.id == "_POINTS"
    yield from _POINTS.values()


def test_every_point_is_declared_once_and_reached() -> None:
    assert len(NAMES) == len(EVERY)
    sent = {name for name in NAMES if name.startswith("send.")}
    assert _reached() == NAMES - sent
    assert {name.split(".")[1] for name in sent} <= set(dir(messages)) | {"Plan", "StepDone", "ExecutorReady"}
    assert any(isinstance(call.args[0], ast.Name) for call in _calls("around")), "mail has its points"


def test_every_point_says_who_passes_it_and_what_it_means() -> None:
    assert all(point.kinds and set(point.kinds) <= set(failpoints.EVERYBODY) for point in EVERY)
    assert len({point.sentence for point in EVERY}) == len(EVERY)


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("scheduler.0/bell.after=kill", Rule("scheduler.0", "bell.after", Action.KILL)),
        ("a/bell.after=kill@7", Rule("a", "bell.after", Action.KILL, passage=7)),
        ("a/bell.after=kill@7x20", Rule("a", "bell.after", Action.KILL, 7, 1, 20)),
        ("tokenizer.*/bell.after=stop#3", Rule("tokenizer.*", "bell.after", Action.STOP, 1, 3, 3)),
        ("a/bell.after=pause:250@2", Rule("a", "bell.after", Action.PAUSE, 2, 1, 1, 0.25)),
    ],
)
def test_rules(text: str, rule: Rule) -> None:
    assert parse(f" {text} ;") == (rule,)


@pytest.mark.parametrize(
    "text",
    ["bell.after=kill", "a/bell.after", "a/bell.after=explode", "a/bell.after=kill@0", "a/bell.after=killx",
     "a/bell.after=pause", "a/no.such.point=kill", "a/bell.after=kill,b/bell.after=kill"],
)  # fmt: skip
def test_what_is_no_rule_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="failpoint"):
        parse(text)


def test_a_trap_counts_passages_of_its_own_incarnations() -> None:
    done: list[Rule] = []
    trap = Trap(parse("a.*/bell.after=kill@2x2;b/bell.after=kill"), done.append)
    trap.reach("bell.after")
    trap.begin("a.0", 2)
    trap.reach("bell.before")
    trap.reach("bell.after")
    assert not done
    trap.reach("bell.after")
    trap.reach("bell.after")
    assert [rule.actor for rule in done] == ["a.*"]
    later = Trap(parse("a.*/bell.after=kill@2x2"), done.append)
    later.begin("a.0", 3)
    for _ in range(3):
        later.reach("bell.after")
    assert len(done) == 1


def test_a_store_and_a_call_lie_between_their_points() -> None:
    words = memoryview(bytearray(64)).cast("Q")
    seen: list[tuple[str, int]] = []
    watched = Watched(words, {1: "word"}, 4, lambda name: seen.append((name, words[5])))
    watched[4] = 7
    watched[5] = 9
    assert watched[4] == 7
    assert seen == [("word.before", 0), ("word.after", 9)]
    calls: list[str] = []
    assert between(lambda value: f"call.{value}", lambda value: value + 1, calls.append)(1) == 2
    assert calls == ["call.1.before", "call.1.after"]


def test_a_normal_run_pays_nothing() -> None:
    """No wrapper anywhere, and the words are the memory itself."""
    assert os.environ.get(failpoints.VARIABLE) is None
    for function in (Outbox.send_nowait, Doorbell.ring, Ring.write_nowait, Ledger.commit):
        assert not hasattr(function, "__wrapped__"), function
    ring = Ring.create(4096)
    assert type(ring._words) is memoryview
    ring.close()


_PASS = """
from runtime import failpoints
from runtime.ring import Ring
failpoints.begin("scheduler.0", 1)
ring = Ring.create(4096)
for number in range(5):
    ring.write_nowait(b"x", 1)
    print(ring.used(), flush=True)
"""


@pytest.mark.parametrize(("point", "lines"), [("ring.tail.before", 2), ("ring.tail.after", 2)])
def test_a_process_dies_where_it_was_told_to(point: str, lines: int) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _PASS],
        cwd=ROOT,
        env={**os.environ, failpoints.VARIABLE: f"scheduler.0/{point}=kill@3"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL
    assert len(done.stdout.splitlines()) == lines
