"""Which attention serves a pool: what the option asks for, else what is there and knows its numbers."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
from collections.abc import Callable

from gpu.attention.base import Backend
from gpu.attention.flash import FlashKernel, Library, find, misfit
from gpu.attention.paged import PagedAttention, PagedKernel
from gpu.attention.torch_sdpa import TorchAttention
from gpu.cpu.attention import CpuAttention, supports
from gpu.cpu.library import Kernels
from gpu.kv_pool import EIGHT_BITS, KvPool
from protocols.config import AttentionKind, attention_kinds
from protocols.errors import StartError


@dataclasses.dataclass(frozen=True)
class Facts:
    """What decides. flash: name of the FlashAttention that is installed, "" for none; misfit: why it cannot
    serve the pool; reads: whether it reads pages of this size. plain: the model's attention neither caps
    scores nor has sinks. triton, flashinfer: installed, and there is a GPU (or Triton's interpreter).
    eight_bits: keys and values are kept in 8 bits."""

    flash: str
    misfit: str
    reads: bool
    plain: bool
    triton: bool
    flashinfer: bool
    page_size: int
    eight_bits: bool = False


@dataclasses.dataclass(frozen=True)
class Decision:
    """Who attends for chunks, who for decodes, and why."""

    prefill: AttentionKind
    decode: AttentionKind
    reason: str


def decide(facts: Facts) -> Decision:
    """The automatic choice."""
    if not facts.triton:
        return Decision(AttentionKind.TORCH, AttentionKind.TORCH, "Triton is not installed")
    ours = AttentionKind.TRITON
    if not facts.flash:
        return Decision(ours, ours, "no FlashAttention is installed")
    if facts.misfit:
        return Decision(ours, ours, facts.misfit)
    if not facts.plain:
        return Decision(ours, ours, "the model may cap its scores or have sinks")
    if facts.reads:
        return Decision(AttentionKind.FLASH, AttentionKind.FLASH, facts.flash)
    reason = f"{facts.flash} does not read pages of {facts.page_size} tokens"
    return Decision(AttentionKind.FLASH, ours, reason)


def refusal(kind: AttentionKind, facts: Facts, *, decodes: bool) -> str:
    """Why this choice cannot be had; nothing where it can."""
    match kind:
        case AttentionKind.TORCH:
            return ""
        case AttentionKind.TRITON:
            return "" if facts.triton else "Triton needs a CUDA device, and is installed with torch there"
        case AttentionKind.FLASHINFER:
            if facts.flashinfer and facts.eight_bits:
                return "FlashInfer does not read keys and values that have scales for each token"
            return "" if facts.flashinfer else "FlashInfer needs a CUDA device, and is not there"
        case AttentionKind.FLASH:
            if not facts.triton or not facts.flash:
                return "FlashAttention needs a CUDA device, and is not there"
            if facts.misfit:
                return facts.misfit
            if decodes and not facts.reads:
                return (
                    f"{facts.flash} does not read pages of {facts.page_size} tokens for decodes: "
                    "use flash,triton, or --page-size 256 with the package flash-attn"
                )
            return ""


def choose(
    pool: KvPool,
    kernels: Kernels | None,
    option: str = "auto",
    *,
    plain: bool = False,
    tell: Callable[[str], None] = lambda _: None,
) -> Backend:
    """The backend for the pool. option: of `--attention-backend`. tell: is told what was chosen, and why,
    where there was a choice. StartError with a sentence for an option that cannot be had."""
    kinds = attention_kinds(option)
    if pool.device.type == "cpu" and kinds is None:
        return CpuAttention(pool, kernels) if kernels is not None and supports(pool) else TorchAttention(pool)
    if kernels is not None:
        raise StartError(
            f"--attention-backend {option} is for GPUs; on a CPU, attention comes with --kernels.",
            exit_code=2,
        )
    library = find()
    facts = _facts(pool, library, plain=plain)
    decision = decide(facts) if kinds is None else Decision(*kinds, "as asked for")
    for kind, decodes in ((decision.prefill, False), (decision.decode, True)):
        if reason := refusal(kind, facts, decodes=decodes):
            raise StartError(f"--attention-backend {option}: {reason}.", exit_code=2)
    tell(f"attention: {decision.prefill} for prefill, {decision.decode} for decodes ({decision.reason})")
    if AttentionKind.TORCH in (decision.prefill, decision.decode):
        return TorchAttention(pool)
    # Triton is imported only where its kernels run.
    from gpu.attention.triton_paged import store

    made = {kind: _kernel(kind, pool, library) for kind in {decision.prefill, decision.decode}}
    return PagedAttention(pool, made[decision.prefill], made[decision.decode], store)


def _facts(pool: KvPool, library: Library | None, *, plain: bool) -> Facts:
    runs = pool.device.type == "cuda" or os.environ.get("TRITON_INTERPRET") == "1"
    return Facts(
        flash="" if library is None or pool.device.type != "cuda" else library.name,
        misfit=misfit(pool),
        reads=library is not None and library.reads(pool.page_size),
        plain=plain,
        triton=runs and importlib.util.find_spec("triton") is not None,
        flashinfer=pool.device.type == "cuda" and importlib.util.find_spec("flashinfer") is not None,
        page_size=pool.page_size,
        eight_bits=pool.stored is EIGHT_BITS,
    )


def _kernel(kind: AttentionKind, pool: KvPool, library: Library | None) -> PagedKernel:
    match kind:
        case AttentionKind.FLASH:
            assert library is not None
            return FlashKernel(pool, library, _kernel(AttentionKind.TRITON, pool, None))
        case AttentionKind.FLASHINFER:
            from gpu.attention.flashinfer_paged import FlashInferKernel

            return FlashInferKernel(pool)
        case _:
            from gpu.attention.triton_paged import TritonKernel

            return TritonKernel(pool)
