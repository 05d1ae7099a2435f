"""The hash executor: the executor's interface with `protocols.oracle` in the model's place, and no torch.

It keeps what a KV pool would hold, one token for each page and offset (`gpu.hash_pool`), writes it through
the block tables and reads the context back through them. The oracle's token comes out only while a
sequence's whole context reads back as that sequence wrote it: a wrong page, a page freed too early, a missing
grant, a wrong position or a wrong token in a re-prefill makes every later token of that sequence wrong, as it
would with a model.

Weights have a number, the CRC-32 of their files (0 for the model's own), which is mixed into each token and
into what the pages hold.
"""

from __future__ import annotations

import dataclasses
import time
import zlib
from collections.abc import Callable, Iterator
from typing import Self

import msgspec
import numpy as np

from gpu.hash_pool import HashPool, Ints, Words, shuffle
from gpu.hash_shelf import HashShelf
from gpu.hash_versions import HashVersions
from gpu.lora.table import AdapterTable
from gpu.step_recording import StepRecording
from protocols import oracle
from protocols.config import Config, Speculate
from protocols.orders import StartProfile
from protocols.plan import Chunk, Logprobs, Plan, PromptOutput, SlotOpen, StepDone
from protocols.sampling import Pool
from protocols.standing import Memory
from protocols.weights import ORIGINAL, Weights

DEFAULT_PAGES = 4096
EXPERTS = 8

_ASTRAY = np.uint64(0x9E3779B95BD1E995)
"""Flips the key of a sequence whose context does not read back."""


@dataclasses.dataclass(frozen=True)
class Flight:
    """A step on its way: its result, when it begins on the device, and when it lands (monotonic ns)."""

    done: StepDone
    begins_ns: int
    lands_ns: int


class HashExecutor:
    """Executes plans for `slots` slots over `pages` pages of `page_size` tokens.

    step_ms: simulated time of a step on a device that runs steps one after another. asynchronous: whether
    a step's time passes after `launch` has returned. speculates: whether plans allow guesses, which are
    the oracle's too, right and wrong ones. adapters: how many go through a step at most.
    """

    def __init__(
        self,
        *,
        pages: int,
        page_size: int,
        slots: int,
        vocab_size: int,
        context: int,
        step_ms: float = 0.0,
        speculates: bool = False,
        adapters: int = 8,
        weights: Weights = ORIGINAL,
    ) -> None:
        self.pages, self.page_size, self.slots, self.vocab_size = pages, page_size, slots, vocab_size
        self.asynchronous = step_ms > 0
        self._speculates = speculates
        self.versions = HashVersions(weights)
        self._step_ns = int(step_ms * 1e6)
        self._table_width = -(-context // page_size) + 1
        self._busy_until_ns = self._landed_ns = 0
        self._epoch = -1
        self.adapters = AdapterTable(HashShelf(), adapters, slots)
        self._recording = False
        self._experts: Ints | None = None
        self._forget()

    @classmethod
    def load(cls, config: Config, progress: Callable[[str], None], weights: Weights = ORIGINAL) -> Self:
        """The executor that `config` describes. Nothing takes time, so `progress` is not called."""
        return cls(
            pages=config.pages or DEFAULT_PAGES,
            page_size=config.page_size,
            slots=config.max_running,
            vocab_size=config.model.vocab_size,
            context=config.model.context,
            step_ms=config.step_ms,
            speculates=config.speculate is not Speculate.OFF,
            adapters=config.max_loras,
            weights=weights,
        )

    def record(self, _wish: StartProfile) -> StepRecording:
        """See `gpu.executor.Executor.record`. There is nothing to see but when steps are launched."""
        return StepRecording()

    def commit(self, serial: int) -> bool:
        """See `gpu.executor.Executor.commit`."""
        return self.versions.commit(serial)

    def launch(self, plan: Plan) -> Flight:
        """Run a plan on the state that the plans before it left."""
        begins_ns = max(time.monotonic_ns(), self._busy_until_ns)
        self._busy_until_ns = begins_ns + self._step_ns * plan.rounds
        self._apply(plan)
        return Flight(self._step(plan), begins_ns, self._busy_until_ns)

    def finish(self, flight: Flight) -> StepDone:
        """Wait until a flight lands. Flights land in the order in which they were launched."""
        wait_ns = flight.lands_ns - time.monotonic_ns()
        if self._step_ns and wait_ns > 0:
            time.sleep(wait_ns / 1e9)
        since_ns, self._landed_ns = max(flight.begins_ns, self._landed_ns), time.monotonic_ns()
        return msgspec.structs.replace(flight.done, elapsed_us=(self._landed_ns - since_ns) // 1000)

    def record_experts(self, on: bool) -> None:
        """See `gpu.executor.Executor.record_experts`. A row's expert is its token, modulo their number."""
        if on and not self._recording:
            self._experts = np.zeros(EXPERTS, np.int64)
        self._recording = on

    def take_experts(self) -> dict[int, tuple[int, ...]]:
        """See `gpu.executor.Executor.take_experts`."""
        if self._experts is None:
            return {}
        taken, self._experts = tuple(self._experts.tolist()), np.zeros(EXPERTS, np.int64)
        return {0: taken}

    def _count(self, tokens: Ints) -> None:
        if self._recording and self._experts is not None:
            self._experts += np.bincount(tokens % EXPERTS, minlength=EXPERTS)

    def release(self, tags: tuple[Memory, ...]) -> dict[str, int]:
        """See `gpu.executor.Executor.release`. What lay in the pages does not read back."""
        if Memory.KV_CACHE in tags:
            self._forget()
        return self._sizes(tags)

    def restore(self, tags: tuple[Memory, ...]) -> dict[str, int]:
        """See `gpu.executor.Executor.restore`."""
        return self._sizes(tags)

    def _sizes(self, tags: tuple[Memory, ...]) -> dict[str, int]:
        return {tag.value: self._pool.nbytes if tag is Memory.KV_CACHE else 0 for tag in tags}

    def _apply(self, plan: Plan) -> None:
        """The plan's deltas, in the order that `protocols.plan` gives."""
        if plan.epoch != self._epoch:
            self._forget()
            self._epoch = plan.epoch
        for slot in plan.closes:
            self._close(slot)
        for opening in plan.opens:
            self._open(opening)
        for grant in plan.grants:
            self._pool.grant(grant)

    def _step(self, plan: Plan) -> StepDone:
        """The plan's tokens, written and sampled."""
        for chunk in plan.chunks:
            self._prefill(chunk)
        decodes, guesses = self._guess(plan)
        if len(decodes):
            self._decode(decodes)
        sampled = np.array([chunk.slot for chunk in plan.chunks if chunk.sample], np.int64)
        slots = np.concatenate([sampled, decodes])
        tokens = self._sample(slots)
        drafted = sum(map(len, guesses.values()))
        right = self._verify(guesses)
        rounds = [self._decode_again(decodes) for _ in range(plan.rounds - 1)]
        results = [(slots, tokens), *right, *rounds]
        slots, tokens = (np.concatenate(parts) for parts in zip(*results, strict=True))
        failed = {slot: why for slot in slots.tolist() if (why := self.adapters.refusal(slot)) is not None}
        tokens[np.isin(slots, list(failed))] = -1
        return StepDone(
            epoch=plan.epoch,
            step=plan.step,
            slots=slots.astype("<i4").tobytes(),
            tokens=tokens.astype("<i4").tobytes(),
            elapsed_us=0,
            logprobs=self._logprobs(slots, tokens),
            failed=tuple(failed.items()),
            prompt_outputs=tuple(self._prompt_outputs(plan)),
            drafted=drafted,
            accepted=sum(len(part[0]) for part in right),
        )

    def _decode_again(self, slots: Ints) -> tuple[Ints, Ints]:
        """The next round of decodes: slots and tokens."""
        self._decode(slots)
        return slots, self._sample(slots)

    def _prompt_outputs(self, plan: Plan) -> Iterator[tuple[int, PromptOutput]]:
        """Made up as the logprobs are; a pooled state is a function of the context as it reads back."""
        for chunk in plan.chunks:
            sampling = self._openings[chunk.slot].sampling
            if sampling.prompt_logprobs is not None:
                told = [*np.frombuffer(chunk.tokens, "<i4")[1:].tolist(), chunk.follower]
                top, vocab = sampling.prompt_logprobs, self.vocab_size
                logprobs = tuple(_made_up(token, top, vocab) for token in told if token >= 0)
                yield chunk.slot, PromptOutput(logprobs)
            if sampling.pool is not Pool.NONE and chunk.sample:
                state = oracle.hash_state(self._key_of(chunk.slot))
                yield chunk.slot, PromptOutput(pooled=np.array(state, "<f4").tobytes())

    def _guess(self, plan: Plan) -> tuple[Ints, dict[int, tuple[int, ...]]]:
        """The slots that decode, and guesses for some; none for a slot that has nothing left to sample."""
        decodes = np.frombuffer(plan.decodes, "<i4").astype(np.int64)
        if not self._speculates:
            return decodes, {}
        allowed = np.frombuffer(plan.drafts, "<i4").tolist() or [0] * len(decodes)
        guesses: dict[int, tuple[int, ...]] = {}
        slots: list[int] = []
        for slot, most in zip(decodes.tolist(), allowed, strict=True):
            opening, position = self._openings[slot], int(self._pool.position[slot])
            sampling, known = opening.sampling, opening.prompt_len
            granted = self._pool.granted(slot)
            room = granted if sampling.max_tokens is None else min(granted, known + sampling.max_tokens - 1)
            room -= position
            if not sampling.draftable or room > 0:
                slots.append(slot)
            if sampling.draftable and (count := min(most, room - 1)) > 0:
                index, key = position + 1 - known, self._key_of(slot)
                guesses[slot] = oracle.guesses(
                    key, sampling, opening.choice, known, index, count, self.vocab_size
                )
        return np.array(slots, np.int64), guesses

    def _verify(self, guesses: dict[int, tuple[int, ...]]) -> list[tuple[Ints, Ints]]:
        """Slots and tokens of the rows of right guesses, one row of each slot after the other. What the wrong
        ones wrote stays behind the context."""
        results = []
        while guesses:
            right = {slot: left for slot, left in guesses.items() if left and left[0] == self._last[slot]}
            for slot in guesses.keys() - right.keys():
                self._pool.scribble(slot, guesses[slot], self.versions.number)
            guesses = {slot: left[1:] for slot, left in right.items()}
            slots = np.array(list(right), np.int64)
            if len(slots):
                self._decode(slots)
                results.append((slots, self._sample(slots)))
        return results

    def _forget(self) -> None:
        """Empty pages, closed slots."""
        slots = self.slots
        self.adapters.reset()
        self._pool = HashPool(self.pages, self.page_size, slots, self._table_width)
        self._last = np.full(slots, -1, np.int64)
        self._key = np.zeros(slots, np.uint64)
        self._seed = np.zeros(slots, np.uint64)
        self._choice = np.zeros(slots, np.uint64)
        self._plain = np.ones(slots, np.bool_)
        self._openings: dict[int, SlotOpen] = {}

    def _close(self, slot: int) -> None:
        self._pool.close(slot)
        self._openings.pop(slot, None)
        self.adapters.close(slot)

    def _open(self, opening: SlotOpen) -> None:
        slot, sampling = opening.slot, opening.sampling
        assert sampling.seed is not None
        self._close(slot)
        self._openings[slot] = opening
        self.adapters.open(opening)
        self._pool.position[slot] = opening.cached
        self._last[slot] = -1
        self._seed[slot], self._choice[slot] = sampling.seed, opening.choice
        self._plain[slot] = not sampling.min_tokens and sampling.logprobs is None

    def _prefill(self, chunk: Chunk) -> None:
        tokens = np.frombuffer(chunk.tokens, "<i4").astype(np.int64)
        self._pool.write(chunk.slot, chunk.start, tokens, self.versions.number)
        self._count(tokens)
        if chunk.sample:
            self._settle(chunk.slot, chunk.start + len(tokens))

    def _settle(self, slot: int, end: int) -> None:
        """Read a context of `end` tokens back: from it comes the sequence's key."""
        opening = self._openings[slot]
        context = self._pool.read(slot, end, self.versions.number)
        prompt = context[: opening.prompt_len].astype("<i4").tobytes()
        key = oracle.sequence_key(zlib.crc32(prompt), opening.sampling, opening.adapter)
        key ^= self.versions.number
        output = [self._oracle(slot, key, position) for position in range(opening.prompt_len, end)]
        self._key[slot] = key
        # Weights of before may have made tokens that these would not have.
        changed = self.versions.serial > 1
        self._pool.astray[slot] = not changed and not np.array_equal(context[opening.prompt_len :], output)

    def _decode(self, slots: Ints) -> None:
        """Write each slot's last token at its next position."""
        self._count(self._last[slots])
        self._pool.append(slots, self._last[slots], self.versions.number)

    def _sample(self, slots: Ints) -> Ints:
        """The next token of each slot, which becomes its last token."""
        position = self._pool.position[slots]
        key = self._keys(slots)
        tokens = hash_tokens(key, self._seed[slots], self._choice[slots], position, self.vocab_size)
        for i in np.flatnonzero(~self._plain[slots]):
            tokens[i] = self._oracle(int(slots[i]), int(key[i]), int(position[i]))
        self._last[slots] = tokens
        return tokens

    def _keys(self, slots: Ints) -> Words:
        return np.where(self._pool.astray[slots], self._key[slots] ^ _ASTRAY, self._key[slots])

    def _key_of(self, slot: int) -> int:
        return int(self._keys(np.array([slot]))[0])

    def _oracle(self, slot: int, key: int, position: int) -> int:
        opening = self._openings[slot]
        index = position - opening.prompt_len
        return oracle.next_token(
            key, opening.sampling, opening.choice, opening.prompt_len, index, self.vocab_size
        )

    def _logprobs(self, slots: Ints, tokens: Ints) -> tuple[tuple[int, Logprobs], ...]:
        """A made-up distribution for the slots that ask: the token and those after it, at -1, -2, -3 ..."""
        reports = []
        for i in np.flatnonzero(~self._plain[slots]):
            wanted = self._openings[int(slots[i])].sampling.logprobs
            if wanted is not None:
                reports.append((int(i), _made_up(int(tokens[i]), wanted, self.vocab_size)))
        return tuple(reports)


def _made_up(token: int, wanted: int, vocab: int) -> Logprobs:
    top = range(min(wanted, vocab))
    return Logprobs(-1.0, tuple((token + rank) % vocab for rank in top), tuple(-1.0 - rank for rank in top))


def hash_tokens(key: Words, seed: Words, choice: Words, position: Ints, vocab: int) -> Ints:
    """`protocols.oracle.hash_token` for n rows at once: int64 [n]."""
    value = key * np.uint64(0x9E3779B97F4A7C15) + seed * np.uint64(0xD1B54A32D192ED03)
    value += choice * np.uint64(0x8CB92BA72F3D8DD7) + position.astype(np.uint64) * np.uint64(
        0xA0761D6478BD642F
    )
    return (shuffle(value) % np.uint64(vocab)).astype(np.int64)
