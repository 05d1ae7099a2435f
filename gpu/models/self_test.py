"""Does a model compute in pages what it computes by itself? Asked once, at load."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from gpu.attention import Backend
from gpu.attention.choice import choose
from gpu.block_tables import BlockTables
from gpu.cpu.library import Kernels
from gpu.kv_pool import KvPool
from gpu.models.base import Inputs, Model
from protocols.config import ModelCard
from protocols.errors import StartError
from protocols.plan import Chunk, PageGrant, Plan, SlotOpen
from protocols.sampling import SamplingParams

_PAGE = 4
_TOLERANCE = {torch.float32: (1e-3, 1.0), torch.float16: (3e-2, 0.75), torch.bfloat16: (0.1, 0.75)}
"""(error, share of the rows that must be within it). Rounding passes, another function does not: that
errs by 0.5 and more. In 16 bits rounding can send a row to another expert of a mixture, hence the share."""


def check_paged(
    model: Model,
    own: Callable[[Tensor], Tensor],
    dtype: torch.dtype,
    device: torch.device,
    card: ModelCard,
    kernels: Kernels | None = None,
) -> None:
    """Two sequences, in interleaved chunks and single rows, against `own` logits [T, vocab] of each.

    StartError when they differ by more than rounding.
    """
    lengths = (min(19, card.context), min(9, card.context))
    ids = [torch.arange(size, device=device) * 7919 % card.vocab_size for size in lengths]
    backend = choose(KvPool(model.kv, 16, _PAGE, dtype, device), kernels)
    paged = _run(model, [tokens.cpu().numpy() for tokens in ids], backend)
    for tokens, logits in zip(ids, paged, strict=True):
        expected = own(tokens)
        rows = (logits - expected).norm(dim=1) / expected.norm(dim=1)
        tolerance, share = _TOLERANCE[dtype]
        error = rows.quantile(share)
        if not error < tolerance:
            raise StartError(
                f"{card.architecture} cannot be served in pages: its outputs differ from those of "
                f"transformers (relative error {float(error):.2g})."
            )


def _run(model: Model, prompts: list[np.ndarray], backend: Backend) -> list[Tensor]:
    """Logits of every position of two prompts, computed in steps of several rows and of one."""
    slots = BlockTables(2, backend.pool.pages, _PAGE)
    logits: list[list[Tensor]] = [[], []]
    for plan in _plans(prompts):
        for opening in plan.opens:
            slots.open(opening)
        for grant in plan.grants:
            slots.grant(grant)
        step = slots.step(plan)
        tokens, positions = (
            torch.from_numpy(x).to(backend.pool.device) for x in (step.known_tokens, step.batch.positions)
        )
        out = model.forward(Inputs(tokens, positions, backend.prepare(step.batch)))
        sizes = step.batch.query_lens.tolist()
        for chunk, part in zip(plan.chunks, out.split(sizes), strict=True):
            logits[chunk.slot].append(part)
    return [torch.cat(parts) for parts in logits]


def _plans(prompts: list[np.ndarray]) -> list[Plan]:
    """Chunks of a few tokens of both sequences in one step, at different places; their pages alternate."""
    opens = tuple(SlotOpen(slot, slot, SamplingParams(), 0, 0, 0) for slot in (0, 1))
    grants = tuple(PageGrant(slot, 0, np.arange(slot, 16, 2).astype("<i4").tobytes()) for slot in (0, 1))
    plans = []
    for begin in range(0, max(map(len, prompts)), 5):
        chunks = []
        for slot, size in ((0, 5), (1, 4)):
            start = begin // 5 * size
            part = prompts[slot][start : start + size]
            chunks += [Chunk(slot, start, part.astype("<i4").tobytes(), True)] if len(part) else []
        plans.append(Plan(0, begin, chunks=tuple(chunks)))
    return [Plan(0, 0, opens=opens, grants=grants, chunks=plans[0].chunks), *plans[1:]]
