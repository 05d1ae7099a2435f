"""The hash executor: the executor's interface with `protocols.oracle` in the model's place, and no torch.

It keeps what a KV pool would hold, one token for each page and offset, writes it through the block tables
and reads the context back through them. The oracle's token comes out only while a sequence's whole
context reads back as that sequence wrote it: a wrong page, a page freed too early, a missing grant, a
wrong position or a wrong token in a re-prefill makes every later token of that sequence wrong, as it would
with a model.

Weights have a number, the CRC-32 of their files (0 for the model's own), which is mixed into each token and
into the digests: what other weights wrote does not read back either.

Each page has a digest, the sum of a mix of (offset, token) over what it holds, and each slot the digests
that it expects of its pages, so that a decode compares a few words and not the context.
"""

from __future__ import annotations

import dataclasses
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Self

import msgspec
import numpy as np
import numpy.typing as npt

from gpu.hash_versions import HashVersions
from gpu.lora.table import AdapterTable
from gpu.step_recording import StepRecording
from protocols import oracle
from protocols.adapters import Adapter
from protocols.config import Config, Speculate
from protocols.errors import UserError
from protocols.orders import Memory, StartProfile
from protocols.plan import Chunk, Logprobs, PageGrant, Plan, PromptOutput, SlotOpen, StepDone
from protocols.sampling import Pool
from protocols.weights import ORIGINAL, Weights

Ints = npt.NDArray[np.int64]
Words = npt.NDArray[np.uint64]

DEFAULT_PAGES = 4096
EXPERTS = 8

_EMPTY = -1
_ASTRAY = np.uint64(0x9E3779B95BD1E995)
"""Flips the key of a sequence whose context does not read back."""


@dataclasses.dataclass(frozen=True)
class Flight:
    """A step on its way: its result, when it begins on the device, and when it lands (monotonic ns)."""

    done: StepDone
    begins_ns: int
    lands_ns: int


class HashShelf:
    """`gpu.lora.table.Shelf` without a model: of an adapter only its digest is read. It sees that a slot is
    emptied before it is taken, and keeps nothing."""

    def __init__(self) -> None:
        self._taken: set[int] = set()

    def read(self, adapter: Adapter) -> tuple[None, str]:
        """See `Shelf.read`."""
        try:
            return None, adapter.digest_now()
        except OSError as error:
            raise UserError(f"cannot read {adapter.path} and its weights: {error.strerror}.") from error

    def reserve(self, slots: int, adapters: Sequence[None]) -> None:
        """See `Shelf.reserve`."""

    def put(self, slot: int, prepared: None) -> None:
        """See `Shelf.put`."""
        assert slot not in self._taken, "two adapters in one slot"
        self._taken.add(slot)

    def clear(self, slot: int) -> None:
        """See `Shelf.clear`."""
        self._taken.discard(slot)


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
        return {tag.value: self._tokens.nbytes if tag is Memory.KV_CACHE else 0 for tag in tags}

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
            self._grant(grant)

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
                key = int(self._key[chunk.slot] ^ (_ASTRAY if self._astray[chunk.slot] else np.uint64(0)))
                yield chunk.slot, PromptOutput(pooled=np.array(oracle.hash_state(key), "<f4").tobytes())

    def _guess(self, plan: Plan) -> tuple[Ints, dict[int, tuple[int, ...]]]:
        """The slots that decode, and guesses for some; none for a slot that has nothing left to sample."""
        decodes = np.frombuffer(plan.decodes, "<i4").astype(np.int64)
        if not self._speculates:
            return decodes, {}
        allowed = np.frombuffer(plan.drafts, "<i4").tolist() or [0] * len(decodes)
        guesses: dict[int, tuple[int, ...]] = {}
        slots: list[int] = []
        for slot, most in zip(decodes.tolist(), allowed, strict=True):
            opening, position = self._openings[slot], int(self._position[slot])
            sampling, known = opening.sampling, opening.prompt_len
            granted = int(np.count_nonzero(self._tables[slot] != self.pages)) * self.page_size
            room = granted if sampling.max_tokens is None else min(granted, known + sampling.max_tokens - 1)
            room -= position
            if not sampling.draftable or room > 0:
                slots.append(slot)
            if sampling.draftable and (count := min(most, room - 1)) > 0:
                index, key = position + 1 - known, int(self._keys(np.array([slot]))[0])
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
                self._scribble(slot, guesses[slot])
            guesses = {slot: left[1:] for slot, left in right.items()}
            slots = np.array(list(right), np.int64)
            if len(slots):
                self._decode(slots)
                results.append((slots, self._sample(slots)))
        return results

    def _scribble(self, slot: int, tokens: tuple[int, ...]) -> None:
        """Write tokens behind a slot's context."""
        for position, token in enumerate(tokens, int(self._position[slot])):
            entry, offset = divmod(position, self.page_size)
            page = self._tables[slot, entry]
            assert page < self.pages, "a guess has no page"
            self._tokens[page, offset] = token
            self._digests[page] = self._digest(self._tokens[page][None])[0]

    def _forget(self) -> None:
        """Empty pages, closed slots. The page after the last one stands for entries never granted."""
        slots, width = self.slots, self._table_width
        self.adapters.reset()
        self._tokens = np.full((self.pages + 1, self.page_size), _EMPTY, np.int64)
        self._digests = np.zeros(self.pages + 1, np.uint64)
        self._tables = np.full((slots, width), self.pages, np.int64)
        self._expected = np.zeros((slots, width), np.uint64)
        self._position = np.zeros(slots, np.int64)
        self._last = np.full(slots, _EMPTY, np.int64)
        self._key = np.zeros(slots, np.uint64)
        self._astray = np.zeros(slots, np.bool_)
        self._seed = np.zeros(slots, np.uint64)
        self._choice = np.zeros(slots, np.uint64)
        self._plain = np.ones(slots, np.bool_)
        self._openings: dict[int, SlotOpen] = {}

    def _close(self, slot: int) -> None:
        self._tables[slot] = self.pages
        self._openings.pop(slot, None)
        self.adapters.close(slot)

    def _open(self, opening: SlotOpen) -> None:
        slot, sampling = opening.slot, opening.sampling
        assert sampling.seed is not None
        self._close(slot)
        self._openings[slot] = opening
        self.adapters.open(opening)
        self._position[slot] = opening.cached
        self._last[slot] = _EMPTY
        self._seed[slot], self._choice[slot] = sampling.seed, opening.choice
        self._plain[slot] = not sampling.min_tokens and sampling.logprobs is None

    def _grant(self, grant: PageGrant) -> None:
        pages = np.frombuffer(grant.pages, "<i4")
        assert pages.size == 0 or 0 <= pages.min() <= pages.max() < self.pages
        self._tables[grant.slot, grant.first : grant.first + len(pages)] = pages

    def _prefill(self, chunk: Chunk) -> None:
        tokens = np.frombuffer(chunk.tokens, "<i4").astype(np.int64)
        first, end = chunk.start // self.page_size, chunk.start + len(tokens)
        table = self._tables[chunk.slot, first : -(-end // self.page_size)]
        held = self._tokens[table].reshape(-1)
        held[chunk.start - first * self.page_size :] = _EMPTY
        held[chunk.start - first * self.page_size : end - first * self.page_size] = tokens
        self._tokens[table] = held.reshape(len(table), self.page_size)
        self._digests[table] = self._digest(self._tokens[table])
        self._position[chunk.slot] = end
        self._count(tokens)
        if chunk.sample:
            self._settle(chunk.slot, end)

    def _settle(self, slot: int, end: int) -> None:
        """Read a context of `end` tokens back: from it come the sequence's key and the digests to expect."""
        opening = self._openings[slot]
        pages = -(-end // self.page_size)
        context = self._tokens[self._tables[slot, :pages]].reshape(-1)
        context[end:] = _EMPTY
        prompt = context[: opening.prompt_len].astype("<i4").tobytes()
        key = oracle.sequence_key(zlib.crc32(prompt), opening.sampling, opening.adapter)
        key ^= self.versions.number
        output = [self._oracle(slot, key, position) for position in range(opening.prompt_len, end)]
        self._key[slot] = key
        # Weights of before may have made tokens that these would not have.
        changed = self.versions.serial > 1
        self._astray[slot] = not changed and not np.array_equal(context[opening.prompt_len : end], output)
        self._expected[slot, :pages] = self._digest(context.reshape(pages, self.page_size))

    def _decode(self, slots: Ints) -> None:
        """Write each slot's last token at its next position, and see that its context is as expected."""
        self._count(self._last[slots])
        positions, tokens = self._position[slots], self._last[slots]
        entry, offset = np.divmod(positions, self.page_size)
        pages = self._tables[slots, entry]
        held = self._tokens[pages]
        columns = np.arange(self.page_size)
        held[columns >= offset[:, None]] = _EMPTY
        held[np.arange(len(slots)), offset] = tokens
        self._tokens[pages] = held
        self._digests[pages] = self._digest(held)
        so_far = np.where(offset > 0, self._expected[slots, entry], 0)
        self._expected[slots, entry] = so_far + _mix(offset, tokens, self.versions.number)
        self._position[slots] = positions + 1
        used = int(entry.max()) + 1
        differs = self._digests[self._tables[slots, :used]] != self._expected[slots, :used]
        self._astray[slots] |= (differs & (np.arange(used) <= entry[:, None])).any(1)

    def _sample(self, slots: Ints) -> Ints:
        """The next token of each slot, which becomes its last token."""
        position = self._position[slots]
        key = self._keys(slots)
        tokens = hash_tokens(key, self._seed[slots], self._choice[slots], position, self.vocab_size)
        for i in np.flatnonzero(~self._plain[slots]):
            tokens[i] = self._oracle(int(slots[i]), int(key[i]), int(position[i]))
        self._last[slots] = tokens
        return tokens

    def _digest(self, held: Ints) -> Words:
        """Digest of pages that hold `held` [pages, page_size]: empty entries add nothing."""
        mixed = _mix(np.arange(held.shape[1]), held, self.versions.number)
        return np.where(held == _EMPTY, np.uint64(0), mixed).sum(1, dtype=np.uint64)

    def _keys(self, slots: Ints) -> Words:
        return np.where(self._astray[slots], self._key[slots] ^ _ASTRAY, self._key[slots])

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


def _shuffle(value: Words) -> Words:
    """splitmix64's finaliser (Steele et al., 2014), a bijection of 64-bit words."""
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


def _mix(offset: Ints, token: Ints, weights: int) -> Words:
    return _shuffle((offset.astype(np.uint64) << np.uint64(40) ^ token.astype(np.uint64)) + _spread(weights))


def _spread(weights: int) -> np.uint64:
    return np.uint64(weights * 0xD6E8FEB86659FD93 & 2**64 - 1)


def hash_tokens(key: Words, seed: Words, choice: Words, position: Ints, vocab: int) -> Ints:
    """`protocols.oracle.hash_token` for n rows at once: int64 [n]."""
    value = key * np.uint64(0x9E3779B97F4A7C15) + seed * np.uint64(0xD1B54A32D192ED03)
    value += choice * np.uint64(0x8CB92BA72F3D8DD7) + position.astype(np.uint64) * np.uint64(
        0xA0761D6478BD642F
    )
    return (_shuffle(value) % np.uint64(vocab)).astype(np.int64)
