"""Grammars: which tokens may come next, a function of the request's grammar and its tokens so far.

llguidance follows a grammar token by token and returns a mask of the tokens that may come next. A slot with a
grammar has a matcher, built when the slot is opened from the grammar and the tokens known by then
(`SlotOpen.history`), so that after a retraction or a recovery it stands where it stood before. It is built in
a thread, beside the prefill.

A mask for step N + 1 needs the tokens of step N. As soon as these are there, the matchers take them in and
the masks are filled: on a GPU by a thread, while the forward of N + 1 runs; on a CPU there is nothing to hide
the work behind. Only rows with a grammar are touched.

A grammar that fails, when it is read or later, ends its own row and no other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from llguidance import LLExecutor
from torch import Tensor
from torch.nn.functional import embedding

from gpu.cpu.library import Kernels
from gpu.cuda.staging import to_device
from gpu.masked import Masked
from gpu.matchers import Lent, Matchers
from protocols.config import ModelCard
from protocols.errors import ErrorBody
from protocols.plan import SlotOpen
from protocols.sampling import SamplingParams

Words = npt.NDArray[np.uint32]
Masks = npt.NDArray[np.uint32]
Rows = npt.NDArray[np.intp]
T = TypeVar("T")


_ALONE = 1 << 14
"""Words of all masks together from which on several threads fill them: for fewer, waking the threads takes
longer."""


class Tokens(Protocol):
    """The tokens that a step sampled."""

    def host_tokens(self) -> npt.NDArray[np.int64]:
        """The tokens of all rows; waits for them."""


class Allowed(NamedTuple):
    """What `Grammars.apply` tells. faults: rows that cannot go on, and why. masked: what is still to be kept
    to when the tokens are chosen."""

    faults: dict[int, ErrorBody]
    masked: Masked | None


class Follower:
    """Where one sequence stands in its grammar. fault: why it cannot go on, None while it can."""

    def __init__(
        self,
        lent: Lent,
        fresh: Callable[[str], Lent],
        sampling: SamplingParams,
        eos: Sequence[int],
        known: Sequence[int],
    ) -> None:
        """fresh: lends a matcher that nobody has used; eos: what a matcher takes for the end; known: the
        output so far."""
        self.lent, self.matcher = lent, lent.matcher
        self.fault: ErrorBody | None = None
        self.tokens: list[int] = []
        self._fresh = fresh
        self._stops = frozenset(sampling.stop_token_ids)
        self._usual = self._stops == frozenset(eos)
        self._ends = [_bit(token) for token in self._stops]
        self._never = [_bit(token) for token in self._stops.union(eos)]
        self._ended = False
        for token in known:
            self.advance(token)

    def advance(self, token: int) -> None:
        """The sequence went on with `token`; behind a stop token (or a failed row's -1) nothing counts."""
        self._ended = self._ended or token in self._stops or token < 0
        if not self._ended:
            self.tokens.append(token)
            self.matcher.consume_token(token)

    def leave(self) -> None:
        """Let go of the matcher, which others may use from now on; what the row still samples is wasted."""
        self._ended = True

    def mend(self, mask: Words, *, young: bool) -> None:
        """Edit a mask of what the grammar allows, a bit for each token. Tokens that stop the sequence are
        allowed exactly where the grammar may end, and not while the sequence is `young`; but something is
        always allowed, unless the grammar became too complex. A row that is wasted anyway is free."""
        if self._ended:
            mask[:] = 0xFFFFFFFF
            return
        if self.matcher.is_error() and self.lent.served:
            self._begin_again(mask)
        if self.matcher.is_error():
            self.fault = _fault(self.matcher.get_error())
            mask[:] = 0
        elif young or not self._usual:  # else the matcher has allowed the right ends itself
            self._mend_ends(mask, young=young)

    def _begin_again(self, mask: Words) -> None:
        """With a fresh matcher."""
        self.lent = self._fresh(self.lent.grammar)
        self.matcher = self.lent.matcher
        self.matcher.consume_tokens(self.tokens)
        self.matcher.unsafe_compute_mask_ptr(mask.ctypes.data, mask.nbytes)

    def _mend_ends(self, mask: Words, *, young: bool) -> None:
        cleared = [(word, bit) for word, bit in self._never if mask[word] & bit]
        for word, bit in cleared:
            mask[word] ^= bit
        if self.matcher.is_accepting() and not (young and mask.any()):
            for word, bit in self._ends:
                mask[word] |= bit
        elif cleared and not mask.any():
            for word, bit in cleared:
                mask[word] |= bit


def _fault(error: str) -> ErrorBody:
    """The end of an answer whose grammar outgrows its limits, which only the client can change. Of the
    matcher's message the first line is told; those behind it show the grammar."""
    lines = error.strip().splitlines() or ["unknown error"]
    message = f"The text could not be held to its grammar: {lines[0][:300].rstrip('.')}."
    return ErrorBody(400, message, code="grammar_not_kept")


def _bit(token: int) -> tuple[int, np.uint32]:
    """The word of a mask, and the bit in it, that stand for a token."""
    return token // 32, np.uint32(1 << token % 32)


def _penalties() -> Tensor:
    """What is added to eight logits for a byte of a mask, float32 [256, 8]: zero where the bit is set, else
    minus infinity."""
    bits = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little")
    return torch.from_numpy(np.where(bits, np.float32(0), np.float32(-np.inf)))


class _AtOnce(Executor):
    """Runs what it is given when it is given it."""

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        """Does not return before the result is there."""
        done: Future[T] = Future()
        done.set_result(fn(*args, **kwargs))
        return done


class Grammars:
    """The grammars of all slots."""

    def __init__(
        self, card: ModelCard, device: torch.device, slots: int, kernels: Kernels | None = None
    ) -> None:
        """kernels: of the CPU, where it has some."""
        self._device, self._kernels = device, kernels
        self._words = -(-card.vocab_size // 32)
        self._penalty = _penalties().to(device)
        self._worker = ThreadPoolExecutor(1, "grammar")
        self._preparer = ThreadPoolExecutor(1, "masks") if device.type == "cuda" else _AtOnce()
        self._filler = LLExecutor(max(1, torch.get_num_threads()))
        self._foreseen: list[Follower | ErrorBody] = []
        self._filled: Future[Masks] | None = None
        self._matchers = Matchers(card, slots)
        self._followers: dict[int, Future[Follower | ErrorBody] | Follower | ErrorBody] = {}

    def preload(self) -> None:
        """Read the vocabulary ahead of the first request, beside whatever else goes on."""
        self._worker.submit(lambda: self._matchers.tokenizer)

    def open(self, opening: SlotOpen) -> None:
        """A sequence with a grammar takes a slot."""
        known = np.frombuffer(opening.history, "<i4")[opening.prompt_len :].tolist()
        self._followers[opening.slot] = self._worker.submit(self._begin, opening.sampling, known)

    def close(self, slot: int) -> None:
        """Forget a slot; harmless when it has no grammar."""
        found = self._followers.pop(slot, None)
        if isinstance(found, Follower):
            self._preparer.submit(self._give_back, found)

    def apply(self, logits: Tensor, where: Rows, slots: npt.NDArray[np.int32], young: np.ndarray) -> Allowed:
        """Take from rows `where` of float32 logits [n, vocab], in place or when the tokens are chosen, what
        may not come next; slots[i] and young[i] (stop tokens are not wanted yet) belong to where[i]. Rows
        that cannot go on keep no token."""
        followers = [self._follower(slot) for slot in slots.tolist()]
        masks, faults, early = self._masks(followers), {}, young.tolist()
        for i, (row, follower) in enumerate(zip(where.tolist(), followers, strict=True)):
            if isinstance(follower, ErrorBody):
                faults[row] = follower
                continue
            follower.mend(masks[i], young=early[i])
            if follower.fault is not None:
                faults[row] = follower.fault
        return Allowed(faults, self._keep_allowed(logits, where, masks))

    def sampled(self, tokens: Tokens, where: Rows, slots: npt.NDArray[np.int32]) -> None:
        """What was sampled for the rows of the last `apply`: the masks behind it are filled as soon as it is
        there."""
        self._foreseen = [self._follower(slot) for slot in slots.tolist()]
        self._filled = self._preparer.submit(self._prepare, self._foreseen, tokens, where)

    def _prepare(self, followers: Sequence[Follower | ErrorBody], tokens: Tokens, where: Rows) -> Masks:
        found = tokens.host_tokens()[where].tolist()
        for follower, token in zip(followers, found, strict=True):
            if isinstance(follower, Follower):
                follower.advance(token)
        return self._fill(followers)

    def _give_back(self, follower: Follower) -> None:
        follower.leave()
        self._matchers.back(follower.lent, len(follower.tokens))

    def _masks(self, followers: list[Follower | ErrorBody]) -> Masks:
        """What is allowed: those that were filled ahead, and the others now."""
        filled = self._filled.result() if self._filled is not None else self._fill(())
        if followers == self._foreseen:
            return filled
        ahead = {id(follower): mask for follower, mask in zip(self._foreseen, filled, strict=True)}
        masks = self._fill([None if id(follower) in ahead else follower for follower in followers])
        for i, follower in enumerate(followers):
            if id(follower) in ahead:
                masks[i] = ahead[id(follower)]
        return masks

    def _fill(self, followers: Sequence[Follower | ErrorBody | None]) -> Masks:
        """What the grammars allow: uint32 [n, words], nothing for those that are not followers."""
        masks = np.zeros((len(followers), self._words), np.uint32)
        start, size = masks.ctypes.data, masks.strides[0]
        asked = [(found.matcher, i) for i, found in enumerate(followers) if isinstance(found, Follower)]
        if masks.size < _ALONE:
            for matcher, row in asked:
                matcher.unsafe_compute_mask_ptr(start + row * size, size)
        else:
            self._filler.unsafe_compute_mask_ptr(asked, start, size, len(masks))
        return masks

    def _keep_allowed(self, logits: Tensor, where: Rows, masks: Masks) -> Masked | None:
        if self._kernels is not None:
            return Masked(where, masks, self._kernels)
        packed = to_device(masks.view(np.uint8), self._device)
        penalty = embedding(packed.int(), self._penalty).flatten(1)[:, : logits.shape[1]]
        if len(where) == len(logits):
            logits.add_(penalty)
        else:
            logits.index_add_(0, to_device(where, self._device), penalty)
        return None

    def _follower(self, slot: int) -> Follower | ErrorBody:
        """The follower of an open slot, or why it has none; waits for the thread that builds it."""
        found = self._followers[slot]
        if isinstance(found, Future):
            found = self._followers[slot] = found.result()
        return found

    def _begin(self, sampling: SamplingParams, known: Sequence[int]) -> Follower | ErrorBody:
        """Build a follower, in the thread. A panic of the library is caught too, although it is no
        Exception."""
        matchers = self._matchers
        try:
            eos = matchers.tokenizer.eos_tokens
            return Follower(matchers.lend(sampling.grammar), self._afresh, sampling, eos, known)
        except BaseException as error:
            return _fault(str(error))

    def _afresh(self, grammar: str) -> Lent:
        return self._worker.submit(self._matchers.fresh, grammar).result()
