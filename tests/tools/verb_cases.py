"""One case for each verb of actorctl: how it is called, what it prints, and when it is refused."""

from __future__ import annotations

import dataclasses
import itertools
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

from protocols.adapters import CONFIG, WEIGHTS
from tests.faults.stage import until
from tests.serving import Company
from tests.streams import Stream, ask, completion_id

CLIENT = "client"
"""The key of whoever generates."""
_numbers = itertools.count()


@dataclasses.dataclass
class Stand:
    """A company and files, on which verbs are tried. keys: its key file."""

    company: Company
    folder: pathlib.Path
    keys: pathlib.Path
    collector: str
    stream: Stream | None = None

    def ask(self, verb: str, /, **fields: Any) -> dict[str, Any]:
        """Another verb, which brings the company into the state that a case needs."""
        return ask(self.company, verb, **fields)

    def adapter(self) -> str:
        """What the hash executor takes for an adapter."""
        path = self.folder / "adapter"
        path.mkdir(exist_ok=True)
        (path / CONFIG).write_text("{}")
        (path / WEIGHTS).write_bytes(b"adapter")
        return str(path)

    def checkpoint(self) -> str:
        """What it takes for weights."""
        path = self.file(".safetensors")
        pathlib.Path(path).write_bytes(b"weights")
        return path

    def file(self, ending: str) -> str:
        """A new name."""
        return str(self.folder / f"{next(_numbers)}{ending}")

    def open_request(self) -> str:
        """A request that waits, while generation is paused; its id."""
        self.ask("engine.pause", mode="in_place")
        self.stream = Stream(self.company, tokens=50, key=CLIENT)
        listed = until(lambda: self.ask("request.list")["requests"], "it is known")
        return str(listed[0]["id"])

    def close_request(self) -> None:
        """It is over, if there is one."""
        if self.stream is not None:
            self.ask("request.abort", all=True)
            self.ask("engine.resume")
            self.stream.done()
            self.stream = None

    def ready(self) -> None:
        """Wait until everybody is there."""
        until(lambda: self.company.status()["state"] == "ready", "everybody is ready")


Do = Callable[[Stand], object]
Words = Callable[[Stand], Sequence[str]]


def _nothing(_stand: Stand) -> tuple[str, ...]:
    return ()


def _say(*words: str) -> Words:
    return lambda _stand: words


def _verb(verb: str, /, **fields: Any) -> Do:
    return lambda stand: stand.ask(verb, **fields)


@dataclasses.dataclass(frozen=True)
class Wrong:
    """A wish that is refused: with `code`, and a sentence that has `words`."""

    code: int
    words: str
    arguments: Words | None = None
    before: Do = _nothing
    after: Do = _nothing
    fresh: bool = False


@dataclasses.dataclass(frozen=True)
class Case:
    """keys: of the JSON document. table: what people see. name: what `-o name` prints, as an expression.
    arguments: beside the formats, after `before`; `after` makes good what it has changed. wrong: at another
    moment, or with other arguments. asks: arguments with which it asks before it does anything."""

    keys: frozenset[str] = frozenset()
    table: str = ""
    name: str = ""
    arguments: Words = _nothing
    before: Do = _nothing
    after: Do = _nothing
    wrong: Wrong | None = None
    asks: tuple[str, ...] = ()


def _case(keys: str, table: str, name: str, **more: Any) -> Case:
    return Case(frozenset(keys.split()), table, name, **more)


_ACTORS = r"executor\.0\nscheduler\.0\ntokenizer\.0\nfrontend\.0\n"
_NOBODY = Wrong(4, "there is no actor 'nobody'", _say("nobody"))
_UNKNOWN = Wrong(4, "no request ffff is open", _say("ffff"))
_RELEASED = "released bytes"
_resume = _verb("engine.resume")
_wake = _verb("engine.wake")
_restore = _verb("memory.restore")
_release = _verb("memory.release", tags=["kv_cache"])
_unload = _verb("lora.unload", name="extra")
_start, _stop = _verb("experts.start"), _verb("experts.stop")
_open = _verb("session.open", id="talk")
_close = _verb("session.close", id="talk")
_kv = _say("kv_cache")


def _load(stand: Stand) -> None:
    stand.ask("lora.load", name="extra", path=stand.adapter())


def _profile(stand: Stand) -> None:
    stand.ask("profile.start", folder=str(stand.folder))


def _update(stand: Stand) -> None:
    stand.ask("weights.update", source=stand.checkpoint())


def _break_keys(stand: Stand) -> None:
    stand.keys.rename(stand.folder / "right.toml")
    stand.keys.write_text("[keys")


def _mend_keys(stand: Stand) -> None:
    (stand.folder / "right.toml").rename(stand.keys)


_CHANGED = "version changed bytes dry_run serial checksum seconds stopped_seconds message"
_OPEN = "id scheduler state prompt_tokens output_tokens max_tokens age_seconds"

CASES: dict[tuple[str, ...], Case] = {
    ("serve",): Case(wrong=Wrong(2, "no-such-option", _say("--no-such-option"))),
    ("chat",): Case(
        table="o",
        arguments=_say("hello", "--api-key", CLIENT, "--max-tokens", "8"),
        wrong=Wrong(1, "API key", _say("hello", "--api-key", "wrong")),
    ),
    ("completion",): Case(
        table="_ACTORCTL_COMPLETE", arguments=_say("bash"), wrong=Wrong(2, "tcsh", _say("tcsh"))
    ),
    ("version",): _case("version", "0.", r"\d+\.\d+.*\n"),
    ("doctor",): _case("findings", "CHECK", r"python\n(?s:.*)"),
    ("status",): _case("state name model url actors standing", "ready, serving", _ACTORS),
    ("top",): _case("state actors", "TOK/S", _ACTORS, arguments=_say("--interval", "0.1")),
    ("metrics",): _case("metrics", "troupe:actor_up", r"(troupe:\w+\n)+"),
    ("logs",): Case(
        table='"actor"',
        arguments=_say("--format", "json"),
        wrong=Wrong(4, "no actor", _say("--actor", "nobody")),
    ),
    ("log-level",): _case(
        "level actors",
        "supervisor: info",
        r"info\n",
        arguments=_say("info"),
        after=_verb("logs.level", level="default"),
        wrong=Wrong(4, "no actor", _say("info", "--actor", "nobody")),
    ),
    ("actor", "tree"): _case("tree", "one_for_one", _ACTORS),
    ("actor", "list"): _case("actors", "RESTARTS", _ACTORS),
    ("actor", "get"): _case(
        "name state pid pages_total",
        "pages_total",
        r"scheduler\.0\n",
        arguments=_say("scheduler.0"),
        wrong=_NOBODY,
    ),
    ("actor", "stack"): _case(
        "name stack", "task ", r"executor\.0\n", arguments=_say("executor.0"), wrong=_NOBODY
    ),
    ("actor", "restart"): _case(
        "name pid incarnation",
        "is being replaced",
        r"tokenizer\.0\n",
        arguments=_say("tokenizer.0"),
        before=Stand.ready,
        after=Stand.ready,
        wrong=_NOBODY,
    ),
    ("actor", "kill"): _case(
        "name pid incarnation",
        "was killed",
        r"scheduler\.0\n",
        arguments=_say("scheduler.0"),
        before=Stand.ready,
        after=Stand.ready,
        wrong=_NOBODY,
        asks=("scheduler.0",),
    ),
    ("engine", "pause"): _case(
        "mode running waiting",
        "in_place",
        r"in_place\n",
        after=_resume,
        wrong=Wrong(5, "paused already", before=_verb("engine.pause", mode="wait"), after=_resume),
        asks=("--mode", "abort"),
    ),
    ("engine", "resume"): _case(
        "mode",
        "wait",
        r"running\n",
        before=_verb("engine.pause", mode="wait"),
        wrong=Wrong(5, "generation is not paused"),
    ),
    ("engine", "drain"): _case(
        "mode open",
        "drain",
        r"drained\n",
        after=_resume,
        wrong=Wrong(5, "draining already", before=_verb("engine.drain"), after=_resume),
    ),
    ("engine", "sleep"): _case(
        "mode released bytes",
        "weights, kv_cache, cuda_graph",
        r"asleep\n",
        after=_wake,
        wrong=Wrong(5, "released already", before=_verb("engine.sleep"), after=_wake),
        asks=("--mode", "abort"),
    ),
    ("engine", "wake"): _case(
        _RELEASED,
        "nothing",
        r"awake\n",
        before=_verb("engine.sleep"),
        wrong=Wrong(5, "nothing is"),
    ),
    ("engine", "release-memory"): _case(
        _RELEASED,
        "kv_cache",
        r"released\n",
        arguments=_kv,
        after=_restore,
        wrong=Wrong(5, "released already: kv_cache", before=_release, after=_restore),
    ),
    ("engine", "resume-memory"): _case(
        _RELEASED,
        "nothing",
        r"resumed\n",
        arguments=_kv,
        before=_release,
        wrong=Wrong(5, "not released: kv_cache"),
    ),
    ("engine", "slow-down"): _case(
        "settings",
        "step_delay",
        r"adjusted\n",
        arguments=_say("0.001"),
        after=_verb("engine.slow-down", seconds=0),
        wrong=Wrong(2, "0<=x<=60", _say("61")),
    ),
    ("engine", "set"): _case(
        "settings",
        "lpm",
        r"adjusted\n",
        arguments=_say("policy=lpm"),
        after=_verb("engine.set", settings={"policy": None}),
        wrong=Wrong(5, "without --speculate", _say("speculate_tokens=2")),
    ),
    ("engine", "freeze-gc"): _case("objects", "executor.0", r"frozen\n"),
    ("engine", "flush-cache"): _case("pages kept", "pages", r"flushed\n"),
    ("engine", "info"): _case("options settings state paused", "chunk_size", r"ready\n"),
    ("request", "list"): _case(
        "requests",
        "waiting",
        r"[0-9a-f]+\n",
        before=Stand.open_request,
        after=Stand.close_request,
    ),
    ("request", "get"): _case(
        _OPEN,
        "max_tokens",
        r"[0-9a-f]+\n",
        arguments=lambda stand: [stand.open_request()],
        after=Stand.close_request,
        wrong=_UNKNOWN,
    ),
    ("request", "abort"): _case(
        "aborted not_found",
        "aborted",
        r"[0-9a-f]+\n",
        arguments=lambda stand: [stand.open_request()],
        after=Stand.close_request,
        wrong=_UNKNOWN,
        asks=("--all",),
    ),
    ("lora", "list"): _case("model slots adapters", "first", r"first\n"),
    ("lora", "load"): _case(
        "id name path digest pinned",
        "extra",
        r"extra\n",
        arguments=lambda stand: ["extra", stand.adapter()],
        after=_unload,
        wrong=Wrong(5, "there is an adapter 'extra' already", before=_load, after=_unload),
    ),
    ("lora", "unload"): _case(
        "name id",
        "extra",
        r"extra\n",
        arguments=_say("extra"),
        before=_load,
        wrong=Wrong(4, "no adapter 'extra'"),
    ),
    ("session", "open"): _case(
        "session_id capacity timeout",
        "262144",
        r"talk\n",
        arguments=_say("talk"),
        after=_close,
        wrong=Wrong(5, "there is a session 'talk' already", before=_open, after=_close),
    ),
    ("session", "close"): _case(
        "session_id",
        "talk",
        r"talk\n",
        arguments=_say("talk"),
        before=_open,
        wrong=Wrong(4, "no session 'talk'"),
    ),
    ("session", "list"): _case("sessions", "TOKENS", r"talk\n", before=_open, after=_close),
    ("experts", "start"): _case(
        "recording",
        "recording",
        r"experts\n",
        after=_stop,
        wrong=Wrong(5, "being counted already", before=_start, after=_stop),
    ),
    ("experts", "stop"): _case(
        "recording complete", "complete", r"experts\n", before=_start, wrong=Wrong(5, "not being counted")
    ),
    ("experts", "dump"): _case(
        "recording complete layers",
        "BUSIEST",
        r"0\n",
        before=_start,
        after=_stop,
        wrong=Wrong(5, "no experts have been counted", fresh=True),
    ),
    ("keys", "list"): _case("keys", "TOKENS/MIN", r"boss\nuser\n"),
    ("keys", "reload"): _case(
        "keys",
        "TOKENS/MIN",
        r"boss\nuser\n",
        wrong=Wrong(1, "The keys are as they were", before=_break_keys, after=_mend_keys),
    ),
    ("keys", "add"): _case(
        "name key",
        "sk-troupe-",
        r"new\n",
        arguments=lambda stand: [stand.file(".toml"), "new"],
        wrong=Wrong(5, "a key 'user'", lambda stand: [str(stand.keys), "user"]),
    ),
    ("weights", "info"): _case("version serial checksum sources before", "serial", r".+\n"),
    ("weights", "update"): _case(
        _CHANGED,
        "serve.",
        r"v\n",
        arguments=lambda stand: [stand.checkpoint(), "--version", "v"],
        wrong=Wrong(4, "there is no /nowhere", _say("/nowhere")),
    ),
    ("weights", "rollback"): _case(
        _CHANGED,
        "serve.",
        r".+\n",
        before=_update,
        wrong=Wrong(5, "no weights from before", fresh=True),
    ),
    ("weights", "get"): _case(
        "name dtype shape values",
        "dtype",
        r"hash\n",
        arguments=_say("hash"),
        wrong=Wrong(4, "no tensor", _say("nothing")),
    ),
    ("trace", "request"): _case(
        "trace choices summary spans",
        "AT MS",
        r"(?s:.*)frontend\.0 request\n(?s:.*)",
        arguments=lambda stand: [completion_id(stand.company, CLIENT)],
        wrong=Wrong(4, "nothing is known of 99", _say("99")),
    ),
    ("trace", "record"): _case(
        "file spans choices lost_bytes",
        "spans of",
        r".*\.json\n",
        arguments=lambda stand: ["--duration", "100ms", "-f", stand.file(".json")],
        wrong=Wrong(2, "'soon' is no duration", lambda s: ["--duration", "soon", "-f", s.file(".json")]),
    ),
    ("trace", "sample"): _case(
        "share",
        "100 % of the requests are traced",
        r"1\n",
        arguments=_say("1"),
        wrong=Wrong(2, "0<=x<=1", _say("2")),
    ),
    ("trace", "export"): Case(
        table="spans sent",
        arguments=lambda stand: ["--once", "--endpoint", stand.collector],
        before=lambda stand: completion_id(stand.company, CLIENT),
        wrong=Wrong(1, "collector", _say("--once", "--endpoint", "http://127.0.0.1:9")),
    ),
    ("profile", "start"): _case(
        "files steps",
        "executor.0.trace.json",
        r"executor\.0\n",
        arguments=lambda stand: ["--steps", "5", "--output-dir", str(stand.folder)],
        after=_verb("profile.stop"),
        wrong=Wrong(5, "is being profiled already", before=_profile, after=_verb("profile.stop")),
    ),
    ("profile", "stop"): _case(
        "files steps bytes lost",
        "executor.0.trace.json",
        r"executor\.0\n",
        before=_profile,
        wrong=Wrong(5, "nothing is being profiled"),
    ),
    ("stop",): _case("name state", "is stopping", r"test-.*\n"),
}
"""By the words of the verb."""
