"""A whole scheduler in a box: the core, a virtual executor, a ledger that is a dict, and an observer that
compares everything with the oracle. The tests decide in which order things happen."""

from __future__ import annotations

import zlib
from collections import deque
from typing import Any

import msgspec
import numpy as np

from actors.scheduler.adapters import AdapterSlots
from actors.scheduler.commands import Emit, Launch, Load, Note, Resume, Settle
from actors.scheduler.core import Core, Mail
from actors.scheduler.speculation import Speculation
from protocols.adapters import Adapter
from protocols.config import Policy
from protocols.messages import Abort, StopHere, Submit
from protocols.oracle import continuation, next_token, sequence_key
from protocols.orders import Continue, Flush, Pause, Renew
from protocols.plan import ExecutorReady, Plan
from protocols.request import Finish
from protocols.sampling import SamplingParams
from protocols.standing import PauseMode, Standing
from protocols.weights import NOBODY, Made, Weights
from tools.simulation.executor import VirtualExecutor

VOCAB = 50


def tokens_of(*ids: int) -> bytes:
    """Token ids as int32 bytes."""
    return np.array(ids, "<i4").tobytes()


class Truth:
    """What the oracle says about one choice: its tokens, without end, and the CRC of every context."""

    def __init__(self, submit: Submit) -> None:
        self._submit = submit
        self._key = sequence_key(zlib.crc32(submit.tokens), submit.sampling, submit.adapter)
        self._crcs = [0]
        for token in np.frombuffer(submit.tokens, "<i4").tolist():
            self._push(token)

    def _push(self, token: int) -> None:
        self._crcs.append(zlib.crc32(tokens_of(token), self._crcs[-1]))

    def crc(self, position: int) -> int:
        """CRC of the context that ends with `position`."""
        length = len(self._submit.tokens) // 4
        while len(self._crcs) <= position + 1:
            index = len(self._crcs) - 1 - length
            submit = self._submit
            self._push(next_token(self._key, submit.sampling, submit.choice, length, index, VOCAB))
        return self._crcs[position + 1]


class World:
    """`pages` x `page_size` tokens of KV, `slots` slots. Checks every invariant after every turn."""

    def __init__(
        self,
        *,
        depth: int = 2,
        pages: int = 32,
        page_size: int = 4,
        slots: int = 8,
        chunk_size: int = 16,
        radix: bool = True,
        policy: Policy = Policy.FCFS,
        guesses: int = 0,
        guess_rows: int = 24,
        burst_us: int = 0,
        loras: int = 0,
        ready: bool = True,
    ) -> None:
        self._loras = loras
        self._through: dict[int, int] = {}
        self._core_options: dict[str, Any] = {
            "depth": depth, "chunk_size": chunk_size, "policy": policy, "radix": radix,
            "speculation": Speculation(guesses, guess_rows if guesses else 0),
            "burst_us": burst_us,
        }  # fmt: skip
        self.core = Core(**self._core_options, adapters=self._adapters())
        self.sizes = (pages, page_size, slots)
        self.chunk_size = chunk_size
        self.executor = self._executor()
        self.air: deque[Plan] = deque()
        self.plans: list[Plan] = []
        self.submits: dict[int, Submit] = {}
        self.truths: dict[int, Truth] = {}
        self.output: dict[int, list[int]] = {}
        self.finish: dict[int, Finish] = {}
        self.cached: dict[int, int] = {}
        self.errors: dict[int, str] = {}
        self.made: dict[int, Made] = {}
        self.load: Load | None = None
        self.paused: PauseMode | None = None
        self.weights = 1
        self.incarnation = 0
        self.excused = 0
        self.scheduler_incarnation = 0
        if ready:
            self.restart()

    def _adapters(self) -> AdapterSlots:
        """Those that are loaded: 1 to 9."""
        return AdapterSlots(self._loras, [Adapter(id, f"a{id}", "/", "") for id in range(1, 10)])

    cut_short = (Finish.ABORT, Finish.STOP)
    """Ends that come from outside."""

    @property
    def capacity(self) -> int:
        """Tokens of the whole pool."""
        return self.sizes[0] * self.sizes[1]

    def _executor(self) -> VirtualExecutor:
        pages, page_size, slots = self.sizes
        return VirtualExecutor(
            pages=pages, page_size=page_size, slots=slots, vocab=VOCAB, observe=self._observe
        )

    def _observe(self, rid: int, position: int, crc: int) -> None:
        assert crc == self.truths[rid].crc(position), f"request {rid} reads a foreign context"

    # --- what may happen

    def submit(
        self,
        rid: int,
        prompt: bytes,
        *,
        max_tokens: int = 8,
        stops: tuple[int, ...] = (),
        choice: int = 0,
        seed: int = 1,
        salt: str = "",
        priority: int = 0,
        adapter: int = 0,
        origin: int = 0,
        temperature: float = 1.0,
        penalty: float = 1.0,
        deliver: bool = True,
        whole: bool = False,
    ) -> Submit:
        """A new request."""
        sampling = SamplingParams(
            temperature=temperature,
            repetition_penalty=penalty,
            seed=seed,
            max_tokens=max_tokens,
            stop_token_ids=stops,
        )
        submit = Submit(rid, origin, choice, prompt, sampling, priority, salt, adapter=adapter, whole=whole)
        self.submits[rid] = submit
        self.truths[rid] = Truth(submit)
        self.output[rid] = []
        if deliver:
            self.turn(submit)
        return submit

    def abort(self, rid: int) -> None:
        """Its client has gone."""
        self.finish.setdefault(rid, Finish.ABORT)
        self.turn(Abort(rid))

    def stop_here(self, rid: int) -> None:
        """The tokenizer saw a stop string."""
        self.finish.setdefault(rid, Finish.STOP)
        self.turn(StopHere(rid, len(self.output[rid])))

    def pause(self, mode: PauseMode) -> None:
        """An administrator stops it; in mode ABORT every open request ends, and its client is told."""
        self.paused = mode
        self.turn(Pause(mode))

    def resume(self) -> None:
        """It may go on."""
        self.paused = None
        self.turn(Continue())

    def flush(self) -> None:
        """Forget every prefix that nobody uses."""
        self.turn(Flush())
        assert self.load is not None
        locked = self.core.batcher.cache.locked if self.core.batcher is not None else 0
        assert self.load.pages_cached == locked

    def renew(self) -> None:
        """Other weights serve from now on: everybody begins anew, and nothing of before is left."""
        self.pause(PauseMode.RETRACT)
        while self.step():
            pass
        self.weights += 1
        self.turn(Renew(self.weights))
        assert self.load is not None
        assert self.load.pages_cached == self.load.pages_owned == self.load.running == 0
        self.resume()

    def step(self) -> bool:
        """The executor runs the oldest plan; False when there is none."""
        if not self.air:
            return False
        self.turn(self.executor.run(self.air.popleft()))
        return True

    def restart(self, *, from_outside: bool = False) -> None:
        """The executor dies and comes back with nothing."""
        self.incarnation += 1
        self.excused += from_outside
        self.executor = self._executor()
        self.air.clear()
        pages, page_size, slots = self.sizes
        self.turn(ExecutorReady(self.incarnation, pages, page_size, slots, VOCAB, self.excused))

    def restart_scheduler(self) -> None:
        """The scheduler dies and comes back; the executor goes on with what it was sent."""
        self.scheduler_incarnation += 1
        self.core = Core(
            **self._core_options,
            adapters=self._adapters(),
            epoch=self.scheduler_incarnation << 32,
            standing=Standing(paused=self.paused, weights=Weights(self.weights)),
        )
        pages, page_size, slots = self.sizes
        mail: list[Mail] = [
            Resume(submit, tuple(self.output[rid]), self.made.get(rid, NOBODY))
            for rid, submit in self.submits.items()
            if rid not in self.finish
        ]
        self.turn(*mail, ExecutorReady(self.incarnation, pages, page_size, slots, VOCAB, self.excused))

    def turn(self, *mail: Mail) -> None:
        """One turn of the core, its commands carried out and its invariants checked."""
        commands = self.core.turn(mail)
        for command in sorted(commands, key=lambda command: isinstance(command, Launch)):
            match command:
                case Launch(plan):
                    self._launch(plan)
                case Emit(origin, rows):
                    for row in rows:
                        assert self.submits[row.rid].origin == origin
                        self._row(row)
                case Settle(rid, finish):
                    assert self.finish.setdefault(rid, finish) is finish
                case Note(rid, made):
                    assert made == self.made.get(rid, NOBODY).also(self.weights)
                    self.made[rid] = made
                case Load() as load:
                    self.load = load
        self.core.check()
        assert self.core.batcher is None or self.core.batcher.cache.conserved()

    def drain(self, limit: int = 5000) -> None:
        """Run until nothing is in the air."""
        for _ in range(limit):
            if not self.step():
                return
        raise AssertionError("the scheduler never comes to rest")

    # --- what must be

    def _launch(self, plan: Plan) -> None:
        assert self.paused in (None, PauseMode.WAIT), "a step is launched in a pause"
        plan = msgspec.msgpack.decode(msgspec.msgpack.encode(plan), type=Plan)
        tokens = plan.rounds * len(plan.decodes) // 4 + sum(len(chunk.tokens) // 4 for chunk in plan.chunks)
        tokens += sum(np.frombuffer(plan.drafts, "<i4").tolist())
        assert 0 < tokens <= self.chunk_size
        before = {} if plan.step == 0 else self._through
        self._through = {slot: id for slot, id in before.items() if slot not in plan.closes}
        self._through |= {opened.slot: opened.adapter for opened in plan.opens}
        assert len(set(self._through.values()) - {0}) <= self._loras, "more adapters run than have slots"
        for opened in plan.opens:
            known = self.submits[opened.rid].tokens + tokens_of(*self.output[opened.rid])
            remembered = opened.sampling.remembers or self._core_options["speculation"].tokens > 0
            assert opened.history == (known if remembered else b"")
        self.plans.append(plan)
        self.air.append(plan)

    def _row(self, row) -> None:  # type: ignore[no-untyped-def]
        assert row.rid not in self.finish, f"request {row.rid} goes on after its end"
        assert row.start == len(self.output[row.rid]), "a token is lost or doubled"
        assert row.finish is not Finish.ABORT or self.paused, "a client's own abort is not answered"
        self.output[row.rid] += row.tokens
        assert not row.tokens or self.made[row.rid].also(self.weights) == self.made[row.rid]
        if row.cached:
            self.cached[row.rid] = row.cached
        if row.finish is not Finish.NONE:
            self.finish[row.rid] = row.finish
        if row.error is not None:
            self.errors[row.rid] = row.error.message
        if row.finish is Finish.STOP:
            assert row.stop_token == self.output[row.rid][-1]

    def expected(self, rid: int) -> tuple[tuple[int, ...], Finish]:
        """What the oracle says, with the output clipped to what the pool can hold."""
        submit = self.submits[rid]
        room = self.capacity - len(submit.tokens) // 4 + 1
        assert submit.sampling.max_tokens is not None
        sampling = msgspec.structs.replace(submit.sampling, max_tokens=min(submit.sampling.max_tokens, room))
        return continuation(submit.tokens, sampling, submit.choice, VOCAB, submit.adapter)

    def verify(self) -> None:
        """Everything has come to rest: every request ended as the oracle says, and nothing is held."""
        assert not self.air
        for rid, submit in self.submits.items():
            tokens, finish = self.expected(rid)
            if len(submit.tokens) // 4 + 1 > self.capacity:
                assert not self.output[rid] and self.finish[rid] in (Finish.ERROR, *self.cut_short)
                continue
            assert rid in self.finish, f"request {rid} never ended"
            assert tuple(self.output[rid]) == tokens[: len(self.output[rid])]
            if len(self.output[rid]) < len(tokens):
                assert self.finish[rid] in self.cut_short or "engine died" in self.errors[rid]
            else:
                assert self.finish[rid] in (finish, *self.cut_short)
        assert self.load is not None
        assert (self.load.running, self.load.waiting, self.load.tokens_held) == (0, 0, 0)
        assert self.load.pages_owned == 0
        assert self.load.pages_free + self.load.pages_cached == self.load.pages_total
