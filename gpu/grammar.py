"""Grammars: which tokens may come next, a function of the request's grammar and its tokens so far.

llguidance walks a grammar token by token and tells what may follow as a bit for each token. A slot with
a grammar has a matcher, built from the grammar and the tokens known at its opening (`SlotOpen.history`), so
that it stands after a retraction or a recovery where it stood before. Compiling happens in a thread, beside
the prefill; what was compiled is kept for the next request that asks for the same.

A mask for step N + 1 needs the tokens of step N. `apply` takes them in when it is called, which is after the
forward of N + 1 was launched: on a device that works by itself the wait for N and the filling of masks pass
while it computes, and only rows with a grammar are touched.

Nothing that is wrong with a grammar, at its reading or later, is more than the end of its own row.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from llguidance import LLExecutor, LLMatcher, LLParserLimits, LLTokenizer
from torch import Tensor
from torch.nn.functional import embedding

from gpu.cpu.library import Kernels
from gpu.cuda.staging import to_device
from protocols.config import ModelCard
from protocols.grammar import CACHED_BYTES, CACHED_GRAMMARS, LIMITS
from protocols.plan import SlotOpen
from protocols.sampling import SamplingParams

Words = npt.NDArray[np.uint32]
Masks = npt.NDArray[np.uint32]
Rows = npt.NDArray[np.intp]

_ALONE = 1 << 14
"""Words of all masks from which on several threads fill them: fewer take less time than to wake them."""


class Tokens(Protocol):
    """What a step sampled."""

    def host_tokens(self) -> npt.NDArray[np.int64]:
        """The tokens of all rows; waits for them."""


def load_tokenizer(card: ModelCard) -> LLTokenizer:
    """The model's vocabulary as llguidance needs it; some tenths of a second for a large one."""
    path = card.file("tokenizer.json")
    text = path.read_text(encoding="utf-8") if path.is_file() else _converted(card.path)
    return LLTokenizer(text, n_vocab=card.vocab_size, eos_token=list(card.eos) or None)


def _converted(directory: str) -> str:
    from transformers import AutoTokenizer

    found = AutoTokenizer.from_pretrained(directory, trust_remote_code=False, local_files_only=True)
    return str(found.backend_tokenizer.to_str())


class Follower:
    """Where one sequence stands in its grammar. fault: why it cannot go on, "" while it can."""

    def __init__(
        self, matcher: LLMatcher, sampling: SamplingParams, eos: Sequence[int], known: Sequence[int]
    ) -> None:
        """eos: what the matcher takes for the end; known: the output so far."""
        self.matcher = matcher
        self.fault = ""
        self._stops = frozenset(sampling.stop_token_ids)
        self._usual = self._stops == frozenset(eos)
        self._ends = [_bit(token) for token in self._stops]
        self._never = [_bit(token) for token in self._stops.union(eos)]
        self._ended = False
        for token in known:
            self.advance(token)

    def advance(self, token: int) -> None:
        """The sequence went on with `token`; behind a stop token (or a failed row's -1) nothing counts."""
        if token in self._stops or token < 0:
            self._ended = True
        if not self._ended:
            self.matcher.consume_token(token)

    def mend(self, mask: Words, *, young: bool) -> None:
        """Make of what the grammar allows next, a bit for each token, what is allowed. The tokens that stop
        are allowed just where the grammar may end, and there not while the sequence is `young`; but something
        always is allowed, unless the grammar became too complex. A row that is waste anyway is free."""
        if self._ended:
            mask[:] = 0xFFFFFFFF
        elif self.matcher.is_error():
            self.fault = _fault(self.matcher.get_error())
            mask[:] = 0
        elif young or not self._usual:  # else the matcher has allowed the right ends itself
            self._mend_ends(mask, young=young)

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


def _fault(error: str) -> str:
    """A sentence of the matcher's message; what is behind its first line shows the grammar."""
    lines = error.strip().splitlines() or ["unknown error"]
    return f"The text could not be held to its grammar: {lines[0][:300].rstrip('.')}."


def _bit(token: int) -> tuple[int, np.uint32]:
    """The word of a mask, and the bit in it, that stand for a token."""
    return token // 32, np.uint32(1 << token % 32)


def _penalties() -> Tensor:
    """What is added to eight logits for a byte of a mask, float32 [256, 8]: zero where the bit is set, else
    minus infinity."""
    bits = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little")
    return torch.from_numpy(np.where(bits, np.float32(0), np.float32(-np.inf)))


class Grammars:
    """The grammars of all slots. Compiled ones are kept, the latest used, up to a number and a size."""

    def __init__(self, card: ModelCard, device: torch.device, kernels: Kernels | None = None) -> None:
        """kernels: of the CPU, where it has some."""
        self._card, self._device, self._kernels = card, device, kernels
        self._words = -(-card.vocab_size // 32)
        self._penalty = _penalties().to(device)
        self._worker = ThreadPoolExecutor(1, "grammar")
        self._filler = LLExecutor(max(1, torch.get_num_threads()))
        self._limits = LLParserLimits(**LIMITS, verbose_errors=False)
        self._tokenizer: LLTokenizer | None = None
        self._compiled: OrderedDict[str, LLMatcher] = OrderedDict()
        self._followers: dict[int, Future[Follower | str] | Follower | str] = {}
        self._sampled: tuple[Tokens, list[tuple[int, Follower]]] | None = None

    def preload(self) -> None:
        """Read the vocabulary ahead of the first request, beside whatever else goes on."""
        self._worker.submit(self._vocabulary)

    def open(self, opening: SlotOpen) -> None:
        """A sequence with a grammar takes a slot."""
        known = np.frombuffer(opening.history, "<i4")[opening.prompt_len :].tolist()
        self._followers[opening.slot] = self._worker.submit(self._begin, opening.sampling, known)

    def close(self, slot: int) -> None:
        """Forget a slot; harmless when it has no grammar."""
        self._followers.pop(slot, None)

    def apply(
        self, logits: Tensor, where: Rows, slots: npt.NDArray[np.int32], young: np.ndarray
    ) -> dict[int, str]:
        """Take from rows `where` of float32 logits [n, vocab], in place, what may not come next; slots[i]
        and young[i] (stop tokens are not wanted yet) belong to where[i]. Returns the rows that cannot go on,
        which keep no token, and why."""
        self._catch_up()
        followers = [self._follower(slot) for slot in slots.tolist()]
        masks, faults = self._masks(followers, young), {}
        for row, follower in zip(where.tolist(), followers, strict=True):
            if isinstance(follower, str):
                faults[row] = follower
            elif follower.fault:
                faults[row] = follower.fault
        self._keep_allowed(logits, where, masks)
        return faults

    def sampled(self, tokens: Tokens, where: Rows, slots: npt.NDArray[np.int32]) -> None:
        """What was sampled for the rows of the last `apply`; it is read when the next one needs it."""
        followers = zip(where.tolist(), map(self._follower, slots.tolist()), strict=True)
        self._sampled = tokens, [(row, found) for row, found in followers if isinstance(found, Follower)]

    def _masks(self, followers: Sequence[Follower | str], young: np.ndarray) -> Masks:
        """What is allowed: uint32 [n, words], nothing for those that are only a fault."""
        masks = np.zeros((len(followers), self._words), np.uint32)
        asked = [(row, found) for row, found in enumerate(followers) if isinstance(found, Follower)]
        start, size = masks.ctypes.data, masks.strides[0]
        if masks.size < _ALONE:
            for row, follower in asked:
                follower.matcher.unsafe_compute_mask_ptr(start + row * size, size)
        else:
            matchers = [(follower.matcher, row) for row, follower in asked]
            self._filler.unsafe_compute_mask_ptr(matchers, start, size, len(masks))
        early = young.tolist()
        for row, follower in asked:
            follower.mend(masks[row], young=early[row])
        return masks

    def _keep_allowed(self, logits: Tensor, where: Rows, masks: Masks) -> None:
        if self._kernels is not None:
            self._kernels.mask_rows(logits, where, masks)
            return
        packed = to_device(masks.view(np.uint8), self._device)
        penalty = embedding(packed.int(), self._penalty).flatten(1)[:, : logits.shape[1]]
        if len(where) == len(logits):
            logits.add_(penalty)
        else:
            logits.index_add_(0, to_device(where, self._device), penalty)

    def _follower(self, slot: int) -> Follower | str:
        """Of an open slot, or why it has none; waits for the thread that builds it."""
        found = self._followers[slot]
        if isinstance(found, Future):
            found = self._followers[slot] = found.result()
        return found

    def _catch_up(self) -> None:
        if self._sampled is not None:
            tokens, rows = self._sampled
            self._sampled = None
            found = tokens.host_tokens().tolist()
            for row, follower in rows:
                follower.advance(found[row])

    def _begin(self, sampling: SamplingParams, known: Sequence[int]) -> Follower | str:
        """In the thread. A panic of the library is no Exception, and no reason to die either."""
        try:
            matcher, eos = self._matcher(sampling.grammar).deep_copy(), self._vocabulary().eos_tokens
            return Follower(matcher, sampling, eos, known)
        except BaseException as error:
            return _fault(str(error))

    def _matcher(self, grammar: str) -> LLMatcher:
        compiled = self._compiled.get(grammar)
        if compiled is None:
            compiled = LLMatcher(self._vocabulary(), grammar, log_level=0, limits=self._limits)
            self._compiled[grammar] = compiled
        self._compiled.move_to_end(grammar)
        while len(self._compiled) > CACHED_GRAMMARS or sum(map(len, self._compiled)) > CACHED_BYTES:
            self._compiled.popitem(last=False)
        return compiled

    def _vocabulary(self) -> LLTokenizer:
        if self._tokenizer is None:
            self._tokenizer = load_tokenizer(self._card)
        return self._tokenizer
