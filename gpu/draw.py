"""From logits to a token: restriction of the distribution, and the inverse of its cumulative sum.

Everything that decides is integer arithmetic, so that a row's token is a function of that row alone: the
exponentials exp((logit - best) / temperature), each in [0, 1], become 44-bit integers, whose sums are
exact in any order and under any blocking. Restrictions are *thresholds*, top-k on the logit and the others
on the exponential: tokens that tie with the last one kept are kept too (as transformers and vLLM do for
top-k), so that no order among equals is needed, and the draw goes through the tokens in the order of
their ids.

Here are whole-batch kernels for any device; `gpu.draw_cpu` finds the same tokens with less work on a CPU.
"""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor

SCALE = 2.0**44
"""Weight of the best token."""

_LOG2_E = math.log2(math.e)

MAX_VOCAB = 2**19 - 1
"""So many tokens of that weight still sum below 2**63."""

BLOCK = 128
"""Tokens whose weights are summed first when the drawn token is looked for."""


def exponentials(logits: Tensor, best: Tensor, temperature: Tensor, out: Tensor) -> Tensor:
    """exp((logits - best) / temperature) * 2**44, float32 [n, vocab]; best, temperature float32 [n, 1].

    The scale is exact, so that they order tokens, and truncated to integers are their weights.
    """
    # As a power of two: on a CPU torch's exp takes up to twenty times as long for what is far below the best
    # logit, or minus infinity, as most tokens are under a grammar or at a low temperature.
    return torch.sub(logits, best, out=out).mul_(factor(temperature)).exp2_().mul_(SCALE)


def factor(temperature: Tensor) -> Tensor:
    """What the distance of a logit to the best is multiplied with, for a power of two."""
    return _LOG2_E / temperature.float()


def floor(min_p: Tensor) -> Tensor:
    """The least exponential that min-p keeps, float32."""
    return min_p.float() * SCALE


def padded(vocab: int) -> int:
    """Width of weights over a vocabulary: a multiple of BLOCK."""
    return vocab + -vocab % BLOCK


def weigh(powers: Tensor, out: Tensor) -> Tensor:
    """Exponentials as integers, in out: int64 [n, padded(vocab)]."""
    vocab = powers.shape[1]
    out[:, :vocab] = powers
    out[:, vocab:] = 0
    return out


def least_by_rank(
    powers: Tensor, logits: Tensor, top_k: Tensor, top_p: Tensor, deepest: int
) -> tuple[Tensor, Tensor]:
    """Exponentials after top-k [n, vocab], and the least that top-p keeps of them, float32 [n, 1].

    powers, logits: [n, vocab]. top_k: int64 [n, 1], `deepest` at most. top_p: float64 [n, 1], 1 where off.
    """
    leading = logits.topk(deepest, dim=1)
    least = leading.values.gather(1, top_k - 1)
    powers = powers.masked_fill(logits < least, 0)
    ranked = powers.gather(1, leading.indices)
    total = powers.long().sum(1, keepdim=True)
    return powers, _reached(ranked, ranked.long().cumsum_(1), total, top_p)


def least_by_mass(powers: Tensor, top_p: Tensor) -> Tensor:
    """The least exponential that top-p keeps: float32 [n, 1]. Shapes as in `least_by_rank`."""
    ranked = powers.sort(dim=1, descending=True).values
    sums = ranked.long().cumsum_(1)
    return _reached(ranked, sums, sums[:, -1:], top_p)


def _reached(ranked: Tensor, sums: Tensor, total: Tensor, top_p: Tensor) -> Tensor:
    """The value with which the sums reach their share of the total, the last one where they do not."""
    needed = (total.double() * top_p).ceil().long()
    last = (sums < needed).sum(1, keepdim=True).clamp_(max=ranked.shape[1] - 1)
    return ranked.gather(1, last)


def draw(weights: Tensor, uniform: Tensor) -> Tensor:
    """The first token whose cumulative weight exceeds uniform * total: int64 [n].

    weights: int64 [n, padded(vocab)], 0 for tokens that are out. uniform: float64 [n, 1] in [0, 1). The
    sums of blocks are searched first, then the block.
    """
    blocks = weights.view(len(weights), -1, BLOCK)
    ends = blocks.sum(2).cumsum(1)
    # Less than the total, also beyond 2**53, where doubles are not exact: the total may be rounded up by half
    # a step of doubles, but the greatest uniform number, 1 - 2**-53, takes the product a whole step down.
    target = (uniform * ends[:, -1:].double()).long()
    block = torch.searchsorted(ends, target, right=True).clamp_(max=ends.shape[1] - 1)
    before = torch.where(block > 0, ends.gather(1, (block - 1).clamp_(min=0)), 0)
    inside = blocks.gather(1, block[:, :, None].expand(-1, -1, BLOCK))[:, 0].cumsum(1)
    offset = torch.searchsorted(inside, target - before, right=True)
    return (block * BLOCK + offset)[:, 0]


@dataclasses.dataclass(frozen=True)
class Limits:
    """Parameters of n rows on the device, each float64 [n, 1].

    top_k: the size of the vocabulary where off. top_p, min_p: 1 and 0 where off. by_rank, by_mass: int64
    indices of the rows with top-k, and of those with top-p alone. deepest: the greatest top-k of by_rank.
    """

    temperature: Tensor
    top_k: Tensor
    top_p: Tensor
    min_p: Tensor
    uniform: Tensor
    by_rank: Tensor
    by_mass: Tensor
    deepest: int


def choose(logits: Tensor, rows: Tensor, best: Tensor, limits: Limits) -> Tensor:
    """Tokens of n rows of the logits at once, without waiting for the device: int64 [n].

    logits: [., vocab]. rows: int64 [n]. best: float32 [.], the maxima of all logits. A row whose best is not
    finite gets some token.
    """
    logits, best = logits[rows], best[rows][:, None]
    vocab = logits.shape[1]
    powers = torch.empty(logits.shape, dtype=torch.float32, device=logits.device)
    exponentials(logits, best, limits.temperature, out=powers)
    least = floor(limits.min_p)
    if len(limits.by_rank):
        rows = limits.by_rank
        top_k, top_p = limits.top_k[rows].long(), limits.top_p[rows]
        powers[rows], by_rank = least_by_rank(powers[rows], logits[rows], top_k, top_p, limits.deepest)
        least[rows] = torch.maximum(least[rows], by_rank)
    if len(limits.by_mass):
        rows = limits.by_mass
        least[rows] = torch.maximum(least[rows], least_by_mass(powers[rows], limits.top_p[rows]))
    powers.masked_fill_(powers < least, 0)
    weights = torch.empty((len(logits), padded(vocab)), dtype=torch.int64, device=logits.device)
    return draw(weigh(powers, weights), limits.uniform).clamp_(max=vocab - 1)
