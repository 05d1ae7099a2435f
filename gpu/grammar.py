"""Grammars: which tokens may come next, a function of the request's grammar and its tokens so far.

llguidance walks a grammar token by token and tells what may follow as a bit for each token. A slot with
a grammar has a matcher, built from the grammar and the tokens known at its opening (`SlotOpen.history`), so
that it stands after a retraction or a recovery where it stood before. Compiling happens in a thread, beside
the prefill; what was compiled is kept for the next request that asks for the same.

A mask for step N + 1 needs the tokens of step N. `apply` takes them in when it is called, which is after the
forward of N + 1 was launched: on a device that works by itself the wait for N and the filling of masks pass
while it computes, and only rows with a grammar are touched.
"""

from __future__ import annotations

import pathlib
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

from gpu.cuda.staging import to_device
from protocols.config import ModelCard
from protocols.grammar import CACHED_BYTES, CACHED_GRAMMARS, LIMITS
from protocols.plan import SlotOpen
from protocols.sampling import SamplingParams

Words = npt.NDArray[np.uint32]
Rows = npt.NDArray[np.intp]


class Tokens(Protocol):
    """What a step sampled."""

    def host_tokens(self) -> npt.NDArray[np.int64]:
        """The tokens of all rows; waits for them."""


def load_tokenizer(card: ModelCard) -> LLTokenizer:
    """The model's vocabulary as llguidance needs it; some tenths of a second for a large one."""
    path = pathlib.Path(card.path) / "tokenizer.json"
    text = path.read_text(encoding="utf-8") if path.is_file() else _converted(card.path)
    return LLTokenizer(text, n_vocab=card.vocab_size, eos_token=list(card.eos) or None)


def _converted(directory: str) -> str:
    from transformers import AutoTokenizer

    found = AutoTokenizer.from_pretrained(directory, trust_remote_code=False, local_files_only=True)
    return str(found.backend_tokenizer.to_str())


class Follower:
    """Where one sequence stands in its grammar. eos: what the matcher takes for the end; known: the output so
    far."""

    def __init__(
        self, matcher: LLMatcher, sampling: SamplingParams, eos: Sequence[int], known: Sequence[int]
    ) -> None:
        self.matcher = matcher
        self._stops = frozenset(sampling.stop_token_ids)
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
            return
        if self.matcher.is_error():
            mask[:] = 0
            return
        cleared = [(word, bit) for word, bit in self._never if mask[word] & bit]
        for word, bit in cleared:
            mask[word] ^= bit
        if self.matcher.is_accepting() and not (young and mask.any()):
            for word, bit in self._ends:
                mask[word] |= bit
        elif cleared and not mask.any():
            for word, bit in cleared:
                mask[word] |= bit


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

    def __init__(self, card: ModelCard, device: torch.device) -> None:
        self._card, self._device = card, device
        self._words = -(-card.vocab_size // 32)
        self._penalty = _penalties().to(device)
        self._worker = ThreadPoolExecutor(1, "grammar")
        self._filler = LLExecutor(max(1, torch.get_num_threads()))
        self._limits = LLParserLimits(**LIMITS)
        self._tokenizer: LLTokenizer | None = None
        self._compiled: OrderedDict[str, LLMatcher] = OrderedDict()
        self._followers: dict[int, Future[Follower] | Follower] = {}
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

    def apply(self, logits: Tensor, where: Rows, slots: npt.NDArray[np.int32], young: np.ndarray) -> None:
        """Take from rows `where` of float32 logits [n, vocab], in place, what may not come next; slots[i]
        and young[i] (stop tokens are not wanted yet) belong to where[i]."""
        self._catch_up()
        masks = np.empty((len(where), self._words), np.uint32)
        followers = [self._follower(slot) for slot in slots.tolist()]
        asked = [(follower.matcher, row) for row, follower in enumerate(followers)]
        self._filler.unsafe_compute_mask_ptr(asked, masks.ctypes.data, masks[0].nbytes, len(masks))
        for mask, follower, early in zip(masks, followers, young.tolist(), strict=True):
            follower.mend(mask, young=early)
        packed = to_device(masks.view(np.uint8), self._device)
        penalty = embedding(packed.int(), self._penalty).flatten(1)[:, : logits.shape[1]]
        if len(where) == len(logits):
            logits.add_(penalty)
        else:
            logits.index_add_(0, to_device(where, self._device), penalty)

    def sampled(self, tokens: Tokens, where: Rows, slots: npt.NDArray[np.int32]) -> None:
        """What was sampled for the rows of the last `apply`; it is read when the next one needs it."""
        followers = [self._follower(slot) for slot in slots.tolist()]
        self._sampled = tokens, list(zip(where.tolist(), followers, strict=True))

    def _follower(self, slot: int) -> Follower:
        """Of an open slot; waits for the thread that builds it."""
        found = self._followers[slot]
        if isinstance(found, Future):
            found = self._followers[slot] = found.result()
        return found

    def _catch_up(self) -> None:
        if self._sampled is not None:
            tokens, rows = self._sampled
            self._sampled = None
            found = tokens.host_tokens()
            for row, follower in rows:
                follower.advance(int(found[row]))

    def _begin(self, sampling: SamplingParams, known: Sequence[int]) -> Follower:
        """In the thread."""
        matcher, eos = self._matcher(sampling.grammar).deep_copy(), self._vocabulary().eos_tokens
        return Follower(matcher, sampling, eos, known)

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
