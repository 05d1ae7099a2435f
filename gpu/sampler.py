"""The sampler: one token for each row of logits, each row by the parameters of its own slot.

A row's token depends on nothing but its logits, its slot's parameters and history, and its position: the
path through the code is chosen row by row, sums are exact integers (`gpu.draw`), and randomness is a function
of (seed, choice, position) (`gpu.philox`). So the same request gives the same tokens alone, in any
crowd, and again after a recovery.

Nothing here waits for the device: tokens stay there, and what only the CPU wants (logprobs, failures) is
read when `SampleResult` is asked for it.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from gpu import draw
from gpu.cuda.staging import to_device
from gpu.device import runs_triton
from gpu.draw_cpu import CpuDraw, DrawKind
from gpu.grammar import Allowed, Grammars
from gpu.logprobs import LogprobRows, RawLogprobs
from gpu.masked import Masked
from gpu.penalties import Penalties
from gpu.philox import Uniforms
from protocols.errors import ErrorBody, computation_failed
from protocols.plan import Logprobs, SlotOpen
from protocols.sampling import SamplingParams

SlotIds = npt.NDArray[np.int32]
Positions = npt.NDArray[np.int64]
Rows = npt.NDArray[np.intp]

_NO_FAULTS: Mapping[int, ErrorBody] = types.MappingProxyType({})
_ALL_ALLOWED = Allowed({}, None)

_LEAST_TEMPERATURE = 1e-5
"""Below this a distribution is a single token in float32, and the row is greedy."""

_PENALISED, _BIASED, _SUPPRESSED, _LOGPROBS, _SHAPED = (1 << bit for bit in range(5))

_PARAMETERS = np.dtype(
    [
        ("temperature", "f8"),
        ("top_p", "f8"),
        ("min_p", "f8"),
        ("top_k", "i8"),
        ("seed", "u8"),
        ("choice", "u8"),
        ("prompt_len", "i8"),
        ("min_tokens", "i8"),
        ("logprobs", "i8"),
        ("flags", "u1"),
        ("kind", "u1"),
    ]
)


class SampleResult:
    """Tokens of one step, on the device, and what the CPU may ask about them.

    tokens: int64 [n], -1 where the row failed (an executor that feeds it to the next step clamps it). The
    rest waits for this step, but not for steps launched after it: its copies began with it. faults: rows that
    were left without a token, and why.
    """

    def __init__(
        self,
        tokens: Tensor,
        best: Tensor,
        slots: SlotIds,
        logprobs: LogprobRows | None,
        faults: Mapping[int, ErrorBody] = _NO_FAULTS,
    ) -> None:
        self.tokens = tokens
        self._faults = faults
        self._host = tokens.to("cpu", non_blocking=True), best.to("cpu", non_blocking=True)
        self._slots, self._logprobs = slots, logprobs
        self._copied: torch.cuda.Event | None = None
        if tokens.is_cuda:
            self._copied = torch.cuda.Event()
            self._copied.record()

    def host_tokens(self) -> npt.NDArray[np.int64]:
        """The tokens, for the CPU: int64 [n]."""
        self._wait()
        tokens: npt.NDArray[np.int64] = self._host[0].numpy()
        return tokens

    @property
    def logprobs(self) -> list[tuple[int, Logprobs]]:
        """(row, Logprobs) of the rows that asked and did not fail."""
        self._wait()
        return self._logprobs.report() if self._logprobs else []

    @property
    def failed(self) -> list[tuple[int, ErrorBody]]:
        """(slot, why) of the rows that could not be sampled."""
        rows = np.flatnonzero(self.host_tokens() < 0)
        best = self._host[1].tolist() if len(rows) else []
        return [(int(self._slots[row]), self._faults.get(row) or _fault(best[row])) for row in rows.tolist()]

    def _wait(self) -> None:
        if self._copied is not None:
            self._copied.synchronize()


def _fault(best: float) -> ErrorBody:
    """What is wrong with a row whose greatest logit is not finite."""
    if best != best:
        return computation_failed("The model produced logits that are not numbers (NaN).")
    if best > 0:
        return computation_failed("The model produced an infinite logit.")
    return computation_failed("No token is possible: the logit of every token is minus infinity.")


class Likeliest:
    """What a model that decodes by itself has sampled in one round, as a `SampleResult` tells it. tokens:
    int64 [n], none of them failed."""

    def __init__(self, tokens: Tensor) -> None:
        self.tokens = tokens
        self.logprobs: list[tuple[int, Logprobs]] = []
        self.failed: list[tuple[int, ErrorBody]] = []

    def host_tokens(self) -> npt.NDArray[np.int64]:
        """See `SampleResult`."""
        tokens: npt.NDArray[np.int64] = self.tokens.numpy()
        return tokens


class Sampler:
    """Samples for `slots` slots over `vocab_size` tokens; keeps what each open slot asked for. grammars:
    needed as soon as a slot asks for one."""

    def __init__(
        self,
        slots: int,
        vocab_size: int,
        device: torch.device,
        grammars: Grammars | None = None,
        *,
        fused: bool | None = None,
    ) -> None:
        """fused: by Triton's kernels; on a GPU where they can be had, if not told."""
        if fused is None:
            fused = device.type == "cuda" and runs_triton(device)
        assert vocab_size <= draw.MAX_VOCAB
        self._vocab, self._device = vocab_size, device
        self._slots = np.zeros(slots, _PARAMETERS)
        self._bias: dict[int, tuple[Tensor, Tensor]] = {}
        self._stops: dict[int, Tensor] = {}
        self._penalties = Penalties(slots, vocab_size, device, fused=fused)
        self._grammars = grammars
        self._uniforms = Uniforms(slots)
        self._cpu = CpuDraw(vocab_size) if device.type == "cpu" and not fused else None
        self._draw = _fused_draw() if fused else draw.choose

    def open(self, opening: SlotOpen) -> None:
        """A sequence takes a slot. `opening.sampling` has its seed filled in."""
        self.close(opening.slot)
        sampling, slot = opening.sampling, opening.slot
        assert sampling.seed is not None
        top_k = sampling.top_k if 0 < sampling.top_k < self._vocab else self._vocab
        self._slots[slot] = (
            sampling.temperature,
            sampling.top_p,
            sampling.min_p,
            top_k,
            sampling.seed,
            opening.choice,
            opening.prompt_len,
            sampling.min_tokens,
            0 if sampling.logprobs is None else sampling.logprobs,
            _flags(sampling),
            _kind(sampling, top_k, self._vocab),
        )
        if sampling.logit_bias:
            bias = dict(sampling.logit_bias)
            values = np.array(list(bias.values()), np.float32)
            self._bias[slot] = (self._ids(bias), self._to_device(values))
        if sampling.min_tokens and sampling.stop_token_ids:
            self._stops[slot] = self._ids(sampling.stop_token_ids)
        if sampling.penalised:
            self._penalties.open(opening)
        if sampling.grammar:
            assert self._grammars is not None
            self._grammars.open(opening)

    def close(self, slot: int) -> None:
        """Forget a slot; harmless when it is closed already."""
        self._slots[slot]["flags"] = 0
        self._uniforms.forget(slot)
        self._bias.pop(slot, None)
        self._stops.pop(slot, None)
        self._penalties.close(slot)
        if self._grammars is not None:
            self._grammars.close(slot)

    def reset(self) -> None:
        """Forget every slot."""
        for slot in range(len(self._slots)):
            self.close(slot)

    def takes_likeliest(self, slots: SlotIds) -> bool:
        """Whether all it does for these slots is to take the most likely token."""
        asked = self._slots[slots]
        return not asked["flags"].any() and not asked["kind"].any()

    def sample(self, logits: Tensor, slots: SlotIds, positions: Positions) -> SampleResult:
        """One token for each row of logits [n, vocab]; float32 logits are scratch space afterwards.

        positions[i]: absolute position of the token that is sampled for slots[i].
        """
        asked = self._slots[slots]
        flags = asked["flags"]
        if not flags.any():
            return SampleResult(*self._choose(logits, slots, asked, positions), slots, None)
        young = positions - asked["prompt_len"] < asked["min_tokens"]
        edited = flags & (_PENALISED | _BIASED | _SHAPED) | (flags & _SUPPRESSED) * young
        asking = np.flatnonzero(flags & _LOGPROBS)
        raw = None
        if len(asking):
            raw = RawLogprobs(logits, asking, asked["logprobs"][asking], edited=bool(edited[asking].any()))
        allowed = _ALL_ALLOWED
        if edited.any():
            logits = logits.float()
            allowed = self._edit(logits, slots, edited, young)
        tokens, best = self._choose(logits, slots, asked, positions, allowed.masked)
        penalised = np.flatnonzero(flags & _PENALISED)
        if len(penalised):
            self._penalties.count(tokens, penalised, slots[penalised])
        result = SampleResult(
            tokens, best, slots, raw.choose(logits, tokens) if raw else None, allowed.faults
        )
        shaped = np.flatnonzero(flags & _SHAPED)
        if len(shaped) and self._grammars is not None:
            self._grammars.sampled(result, shaped, slots[shaped])
        return result

    def _edit(self, logits: Tensor, slots: SlotIds, edited: np.ndarray, young: np.ndarray) -> Allowed:
        """Bias, suppression of stop tokens, grammar, penalties, in place. edited: flags of what is due, [n];
        young: rows below their `min_tokens`, [n]. Returns what the grammars allow."""
        allowed = _ALL_ALLOWED
        for row in np.flatnonzero(edited & _BIASED):
            ids, values = self._bias[int(slots[row])]
            logits[row].index_add_(0, ids, values)
        for row in np.flatnonzero(edited & _SUPPRESSED):
            logits[row].index_fill_(0, self._stops[int(slots[row])], -torch.inf)
        shaped = np.flatnonzero(edited & _SHAPED)
        if len(shaped) and self._grammars is not None:
            allowed = self._grammars.apply(logits, shaped, slots[shaped], young[shaped])
        rows = np.flatnonzero(edited & _PENALISED)
        if len(rows):
            self._penalties.apply(logits, rows, slots[rows])
        return allowed

    def _choose(
        self,
        logits: Tensor,
        slots: SlotIds,
        asked: np.ndarray,
        positions: Positions,
        masked: Masked | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Tokens, int64 [n], -1 where the greatest logit, float32 [n], is not finite."""
        drawn = np.flatnonzero(asked["kind"])
        uniform = np.zeros(len(slots))
        if len(drawn):
            seeds, choices = asked["seed"][drawn], asked["choice"][drawn]
            uniform[drawn] = self._uniforms.at(slots[drawn], seeds, choices, positions[drawn])
        if self._cpu is not None:
            found, highest = self._cpu.choose(logits, asked, uniform, masked)
            return torch.from_numpy(np.where(np.isfinite(highest), found, -1)), torch.from_numpy(highest)
        greatest = logits.max(1)
        tokens, best = greatest.indices, greatest.values.float()
        if len(drawn):
            at = self._to_device(drawn)
            chosen = self._draw(logits, at, best, self._limits(asked[drawn], uniform[drawn]))
            tokens = tokens.index_copy(0, at, chosen)
        return torch.where(torch.isfinite(best), tokens, -1), best

    def _limits(self, asked: np.ndarray, uniform: np.ndarray) -> draw.Limits:
        by_rank, by_mass = (np.flatnonzero(asked["kind"] == kind) for kind in (DrawKind.RANK, DrawKind.MASS))
        columns = (asked[name].astype(np.float64) for name in ("temperature", "top_k", "top_p", "min_p"))
        numbers = self._to_device(np.stack([*columns, uniform])[:, :, None])
        temperature, top_k, top_p, min_p, points = numbers
        deepest = int(asked["top_k"][by_rank].max(initial=1))
        rows = self._to_device(by_rank), self._to_device(by_mass)
        return draw.Limits(temperature, top_k, top_p, min_p, points, *rows, deepest)

    def _ids(self, ids: dict[int, float] | tuple[int, ...]) -> Tensor:
        return self._to_device(np.array(list(ids), np.int64))

    def _to_device(self, values: np.ndarray) -> Tensor:
        return to_device(values, self._device)


def _fused_draw() -> Callable[[Tensor, Tensor, Tensor, draw.Limits], Tensor]:
    from gpu.cuda.sample_kernels import choose

    return choose


def _kind(sampling: SamplingParams, top_k: int, vocab_size: int) -> DrawKind:
    """How a slot's tokens are chosen. A distribution of one token (top-k 1, no temperature) is greedy."""
    if sampling.temperature < _LEAST_TEMPERATURE or top_k == 1:
        return DrawKind.GREEDY
    if top_k < vocab_size:
        return DrawKind.RANK
    if sampling.top_p < 1.0:
        return DrawKind.MASS
    return DrawKind.RATIO if sampling.min_p > 0.0 else DrawKind.FREE


def _flags(sampling: SamplingParams) -> int:
    """Which further steps a slot needs."""
    return (
        _PENALISED * sampling.penalised
        | _BIASED * bool(sampling.logit_bias)
        | _SUPPRESSED * bool(sampling.min_tokens and sampling.stop_token_ids and not sampling.grammar)
        | _LOGPROBS * (sampling.logprobs is not None)
        | _SHAPED * bool(sampling.grammar)
    )
