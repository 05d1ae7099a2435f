"""Every verb at every wrong moment: it works, or it is refused with a sentence, and the company serves on.

The verbs are those of the company's one table, and each has its fields in `FIELDS`: one without fails. What
does not stand in `REFUSED` works. All the while a stream is amid its answer, and exact as far as it comes.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import os
import pathlib
import re
import signal
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from actors.control.table import VERBS as OWN
from actors.frontend.admin_routes import STATUSES
from protocols.adapters import CONFIG, WEIGHTS
from protocols.errors import VerbError
from runtime.failpoints import VARIABLE
from runtime.verbs import VERBS as ANY
from tests.faults.stage import state_of, until
from tests.serving import Company, serving
from tests.streams import Stream, ask
from tools.actorctl.target import EXIT_CODES

pytestmark = pytest.mark.timeout(400)

PACE, CRAWL = 0.03, 0.5
"""Seconds of each step: usually, and where nothing may end meanwhile."""
TOKENS = 1500
GROUP = {"group": "trainer"}
TENSORS = {"names": ["x"], "dtypes": ["float32"], "shapes": [[1]]}

FIELDS: dict[str, dict[str, Any]] = {
    "status": {},
    "tree": {},
    "metrics": {},
    "watch": {"interval": 0.1, "looks": 1},
    "server.info": {},
    "model.info": {},
    "logs.read": {},
    "logs.level": {"level": "info"},
    "keys.list": {},
    "keys.reload": {},
    "trace.read": {},
    "trace.record": {"seconds": 0.1},
    "trace.sample": {"share": 0},
    "actor.stack": {"name": "executor.0"},
    "actor.restart": {"name": "tokenizer.0"},
    "actor.kill": {"name": "tokenizer.1"},
    "request.list": {},
    "request.get": {"ids": "{request}"},
    "request.abort": {"ids": ["ffff"]},
    "session.open": {"id": "talk"},
    "session.list": {},
    "session.go-on": {"id": "talk", "owner": "a", "room": 10},
    "session.keep": {"id": "talk", "rid": "r", "added": "AAAAAA==", "kept": 0, "answer": 0},
    "session.close": {"id": "talk"},
    "lora.load": {"name": "extra", "path": "{folder}/adapter"},
    "lora.list": {},
    "lora.unload": {"name": "extra"},
    "experts.start": {},
    "experts.dump": {},
    "experts.stop": {},
    "profile.start": {"folder": "{folder}"},
    "profile.stop": {},
    "weights.info": {"verify": True},
    "weights.get": {"name": "hash"},
    "weights.update": {"source": "{folder}/served"},
    "weights.tensors": {"path": "{folder}/served"},
    "weights.rollback": {},
    "weights.leave": GROUP,
    "weights.join": {**GROUP, "address": "127.0.0.1", "port": 1, "world_size": 2},
    "weights.receive": {**GROUP, **TENSORS},
    "engine.flush-cache": {},
    "engine.freeze-gc": {},
    "engine.slow-down": {"seconds": PACE},
    "engine.set": {"settings": {"policy": "fcfs"}},
    "engine.pause": {"mode": "retract"},
    "engine.resume": {},
    "engine.drain": {"timeout": 0.05},
    "memory.release": {"tags": ["kv_cache"]},
    "memory.restore": {"tags": ["kv_cache"]},
    "engine.sleep": {"mode": "retract"},
    "engine.wake": {},
    "stop": {},
}
"""By verb, in the order in which they are tried: many are the next one's beginning."""

Refusals = Mapping[str, str | tuple[str, str]]
"""By verb: words of the sentence, and before them the code where that is not "conflict"."""

_WEIGHTS = tuple(verb for verb in FIELDS if verb.startswith("weights."))
_READING = ("lora.load", "experts.start", "experts.dump", *(verb for verb in _WEIGHTS if verb[8:] != "leave"))
_CHANGING = (
    *(verb for verb in FIELDS if verb.startswith(("experts.", "profile.", "memory."))),
    *("lora.load", "lora.unload", *(verb for verb in _WEIGHTS if verb[8:] != "get")),
    *("engine.slow-down", "engine.set", "engine.pause", "engine.resume", "engine.drain"),
    *("engine.sleep", "engine.wake"),
)
_KEYLESS = dict.fromkeys(("keys.list", "keys.reload"), "the company has no key")
_SERVING: Refusals = {
    **_KEYLESS,
    "request.abort": ("not_found", "no request ffff is open"),
    "weights.leave": ("not_found", "there is no group 'trainer'"),
    "weights.join": ("failed", "takes part in no group"),
    "weights.receive": ("not_found", "is in no group 'trainer'"),
    "engine.resume": "generation is not paused",
    "engine.drain": ("timeout", "still open after 0.05 s: 1 request"),
    "memory.release": "memory is held by 1 request: pause generation first",
    "memory.restore": "not released: kv_cache",
    "engine.wake": "not released: nothing is",
}
"""Of a hash executor, which meets nobody, and while a request is open."""
_EMPTY: Refusals = {
    **_SERVING,
    **dict.fromkeys(_READING, "the weights are released: resume them first"),
    "lora.unload": ("not_found", "no adapter 'extra'"),
    "experts.stop": "the experts are not being counted: start that first",
    "engine.pause": "generation is paused already",
    "engine.resume": "memory is released (weights",
    "engine.sleep": "memory is released already: take it again first",
}


def _but(refused: Refusals, *works: str) -> Refusals:
    return {verb: words for verb, words in refused.items() if verb not in works}


REFUSED: dict[str, Refusals] = {
    "serving": _SERVING,
    "paused": {
        **_but(_SERVING, "engine.resume"),
        "engine.pause": "paused already (in_place): resume it first",
        "engine.sleep": "paused already (in_place): resume it first",
    },
    "draining": {
        **_but(_SERVING, "engine.resume"),
        "engine.drain": "draining already: resuming ends that",
    },
    "asleep": {
        **_but(_EMPTY, "memory.restore", "engine.wake"),
        "memory.release": "released already: weights, kv_cache, cuda_graph",
    },
    "without weights": _but(_EMPTY, "engine.wake"),
    "without pages": {
        **_but(_SERVING, "memory.restore", "engine.wake"),
        "engine.pause": "paused already (retract): resume it first",
        "engine.resume": "memory is released (kv_cache): take it again first",
        "engine.sleep": "memory is released already: take it again first",
        "memory.release": "released already: kv_cache",
    },
    "changing": {
        **_KEYLESS,
        "request.abort": ("not_found", "no request ffff is open"),
        **dict.fromkeys(_CHANGING, "a change of weights is under way: try again once it has ended"),
    },
    "stopping": {
        **_SERVING,
        "actor.restart": "the company is stopping",
        "actor.kill": "the company is stopping",
    },
}
"""By moment."""

WISHES: dict[str, tuple[tuple[str, dict[str, Any]], ...]] = {
    "serving": (),
    "paused": (("engine.pause", {"mode": "in_place"}),),
    "draining": (("engine.drain", {"timeout": 0.05}),),
    "asleep": (("engine.sleep", {"mode": "retract"}),),
    "without weights": (("engine.pause", {"mode": "in_place"}), ("memory.release", {"tags": ["weights"]})),
    "without pages": (("engine.pause", {"mode": "retract"}), ("memory.release", {"tags": ["kv_cache"]})),
}
"""What brings a company that serves to a moment."""

ABSENT: tuple[tuple[str, dict[str, Any], str, str], ...] = (
    *(
        (verb, {"name": "nobody"}, "not_found", "there is no actor 'nobody'; there are executor.0")
        for verb in ("actor.kill", "actor.restart", "actor.stack")
    ),
    ("logs.level", {"level": "info", "actor": "nobody"}, "not_found", "there is no actor 'nobody'"),
    ("logs.read", {"actor": "nobody"}, "not_found", "there is no actor 'nobody'"),
    (
        "profile.start",
        {"actors": ["nobody"]},
        "not_found",
        "actors must be some of the executors: ",
    ),
    ("request.get", {"ids": "ffff"}, "not_found", "no request ffff is open"),
    ("request.abort", {"ids": ["ffff"]}, "not_found", "no request ffff is open"),
    ("session.close", {"id": "nobody"}, "not_found", "there is no session 'nobody'"),
    ("session.go-on", {"id": "nobody"}, "not_found", "there is no session 'nobody'"),
    ("session.keep", {"id": "nobody", "rid": "r", "added": "AAAAAA=="}, "not_found", "there is no session"),
    ("lora.unload", {"name": "nobody"}, "not_found", "there is no adapter 'nobody'"),
    ("lora.load", {"name": "pinned", "path": "{folder}/adapter"}, "conflict", "'pinned' already; replace it"),
    (
        "lora.load",
        {"name": "second", "path": "{folder}/adapter", "pinned": True},
        "conflict",
        "2 slots (--max-loras) leave none to other adapters",
    ),
    ("lora.load", {"name": "third", "path": "/nowhere"}, "usage", "cannot read /nowhere"),
    ("weights.get", {"name": "nobody"}, "not_found", "no tensor 'nobody'"),
    ("weights.update", {"source": "/nowhere"}, "not_found", "there is no /nowhere"),
    ("weights.tensors", {"path": "/nowhere"}, "not_found", "there is no /nowhere"),
)
"""Verbs about what is not there, and adapters for which there is no slot."""


@dataclasses.dataclass
class Scene:
    """A company, and files. truth: what the stream must have said in the end. stream: amid its answer;
    request: its id."""

    company: Company
    folder: pathlib.Path
    truth: str = ""
    stream: Stream | None = None
    request: str = ""

    def ask(self, verb: str, **fields: Any) -> dict[str, Any]:
        return ask(self.company, verb, **fields)

    def wish(self, verb: str, fields: Mapping[str, Any]) -> dict[str, Any]:
        """A verb with fields in which names stand for what there is."""
        return self.ask(verb, **{key: self._named(value) for key, value in fields.items()})

    def _named(self, value: Any) -> Any:
        match value:
            case str():
                return value.format(folder=self.folder, request=self.request)
            case list():
                return [self._named(each) for each in value]
            case _:
                return value

    def standing(self) -> dict[str, Any]:
        """What has been decided."""
        found: dict[str, Any] = self.company.status()["standing"]
        return found

    def ready(self, name: str) -> None:
        until(lambda: self.company.actor(name)["state"] == "ready", f"{name} is there")

    @contextlib.contextmanager
    def streaming(self, pace: float = PACE) -> Iterator[Stream]:
        """A stream is amid its answer meanwhile, and exact as far as it comes."""
        self.ask("engine.slow-down", seconds=pace)
        self.stream = Stream(self.company, tokens=TOKENS).begun()
        (listed,) = self.ask("request.list")["requests"]
        self.request = listed["id"]
        yield self.stream
        self.ask("request.abort", all=True)
        text, finish = self.stream.done()
        assert finish == "abort" and self.truth.startswith(text.rstrip("\ufffd"))

    def get_further(self) -> None:
        """The stream does."""
        stream = self.stream
        assert stream is not None
        length = len(stream.text)
        until(lambda: len(stream.text) > length, "the stream goes on")

    def settle(self) -> None:
        """Serve, whatever holds the company up."""
        if self.standing()["released"]:
            self.ask("memory.restore")
        if self.standing()["paused"] or self.standing()["draining"]:
            self.ask("engine.resume")
        self.get_further()


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    """All weights that it ever has are the same. Its second executor stops before it is ready."""
    folder = tmp_path_factory.mktemp("moments")
    (folder / "adapter").mkdir()
    (folder / "adapter" / CONFIG).write_text("{}")
    (folder / "adapter" / WEIGHTS).write_bytes(b"adapter")
    (folder / "served").write_bytes(b"weights")
    options = ("--max-loras", "2", "--tokenizers", "2", "--drain-seconds", "300", "--burst-ms", "0")
    stop = {VARIABLE: "executor.0/send.ExecutorReady.before=stop#2"}
    with serving("--executor", "hash", *options, environment=stop) as company:
        made = Scene(company, folder)
        for _ in range(2):
            made.ask("weights.update", source=str(folder / "served"))
        made.ask("lora.load", name="pinned", path=str(folder / "adapter"), pinned=True)
        made.truth, _ = Stream(company, tokens=TOKENS).done()
        yield made


def test_every_verb_is_tried() -> None:
    assert FIELDS.keys() == OWN.keys() | ANY.keys()
    assert all(refused.keys() <= FIELDS.keys() for refused in REFUSED.values())
    assert set(EXIT_CODES) == set(STATUSES)
    assert (EXIT_CODES["conflict"], STATUSES["conflict"]) == (5, 409)


def _tried(scene: Scene, moment: str, verb: str, **more: Any) -> None:
    """It works, or is refused as it should be, and then nothing was decided."""
    wanted = REFUSED[moment].get(verb)
    code, words = (wanted if isinstance(wanted, tuple) else ("conflict", wanted)) if wanted else ("", "")
    before = scene.standing()
    try:
        scene.wish(verb, {**FIELDS[verb], **more})
    except VerbError as error:
        assert (verb, error.code) == (verb, code), error
        assert words in str(error)
        assert code == "timeout" or scene.standing() == before
    else:
        assert not code, f"{verb} works"


def _how(standing: Mapping[str, Any]) -> tuple[Any, ...]:
    return standing["paused"], standing["draining"], standing["released"]


def _enter(scene: Scene, moment: str) -> tuple[Any, ...]:
    for verb, fields in WISHES.get(moment, ()):
        late = pytest.raises(VerbError, match="still open")
        with late if verb == "engine.drain" else contextlib.nullcontext():
            scene.ask(verb, **fields)
    return _how(scene.standing())


def _try_all(scene: Scene, moment: str) -> None:
    """What ends the moment is made good before the next verb."""
    there = _enter(scene, moment)
    for verb in FIELDS:
        if verb == "stop" and moment != "stopping":
            continue
        if verb.startswith("actor."):
            scene.ready(FIELDS[verb]["name"])
        _tried(scene, moment, verb)
        if _how(scene.standing()) != there:
            scene.settle()
            assert _enter(scene, moment) == there


@pytest.mark.parametrize("moment", WISHES)
def test_at_a_moment(scene: Scene, moment: str) -> None:
    with scene.streaming():
        _try_all(scene, moment)
        scene.settle()


def test_about_what_is_not_there(scene: Scene) -> None:
    with scene.streaming():
        before = scene.standing()
        for verb, fields, code, words in ABSENT:
            with pytest.raises(VerbError, match=re.escape(words)) as refusal:
                scene.wish(verb, fields)
            assert (verb, refusal.value.code) == (verb, code)
        assert scene.standing() == before


def test_while_the_weights_are_changed(scene: Scene) -> None:
    """By an update that waits for the end of a stream, which takes minutes unless somebody ends it."""
    with concurrent.futures.ThreadPoolExecutor() as pool:
        with scene.streaming(CRAWL):
            served = str(scene.folder / "served")
            update = pool.submit(scene.ask, "weights.update", source=served, mode="wait")
            until(lambda: scene.standing()["paused"] == "wait", "it waits")
            for verb in FIELDS:
                if verb != "stop":
                    _tried(scene, "changing", verb)
            assert not update.done()
        assert "serve" in update.result()["message"]


_ASKING = (
    *("lora.load", "experts.start", "experts.dump", "profile.start", "engine.freeze-gc"),
    *("engine.slow-down", "engine.set", *(verb for verb in _WEIGHTS if verb[8:] != "leave")),
)
_PACING = ("pause", "resume", "drain", "sleep", "wake", "release", "restore")
UNANSWERED: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(FIELDS, ("",)),
    **dict.fromkeys(_ASKING, ("timeout",)),
    **dict.fromkeys((verb for verb in FIELDS if verb.endswith(_PACING)), ("", "conflict", "timeout")),
    **dict.fromkeys(("experts.stop", "profile.stop", *_KEYLESS), ("conflict",)),
    **dict.fromkeys(("request.abort", "lora.unload"), ("not_found",)),
    "actor.stack": ("failed",),
}
"""Codes of what is answered in time while an executor stands still: "" for what works."""


def test_while_an_executor_does_not_answer(scene: Scene) -> None:
    """One that has just come back, and stands still. What was decided meanwhile holds once it goes on."""
    with scene.streaming():
        scene.ask("actor.kill", name="executor.0")
        pid = until(lambda: _stopped(scene.company.actor("executor.0")), "its successor stands still")
        for verb, fields in FIELDS.items():
            if verb == "stop":
                continue
            soon = {} if verb.startswith("session.") else {"timeout": 0.05, "receive_timeout": 0.05}
            try:
                scene.wish(verb, {**fields, **soon})
                code = ""
            except VerbError as error:
                code = error.code
            replaced = scene.company.actor("executor.0")["incarnation"] > 2
            assert code in (("", *EXIT_CODES) if replaced else UNANSWERED[verb]), (verb, code)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)
        scene.ready("executor.0")
        scene.settle()


def _stopped(actor: Mapping[str, Any]) -> int:
    return actor["pid"] if actor["incarnation"] == 2 and state_of(actor["pid"]) == "T" else 0


def test_while_the_company_stops(scene: Scene) -> None:
    """The last of it: it ends once the stream has."""
    with scene.streaming():
        scene.ask("stop")
        _try_all(scene, "stopping")
    assert scene.company.process.wait(60) == 0
