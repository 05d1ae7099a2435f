"""The draw on a CPU: the tokens that `gpu.draw.choose` would find, without sorting a vocabulary.

Rows go through in tiles that stay in the cache, each tile of rows of one kind. Only what lies above a cut
is sorted, and exponentiated where that is enough. Where top-k acts, the cut is the k-th largest *maximum of
a block*: at least k values are as large, and few more. Where top-p acts alone, a ladder of cuts is tried
until what lies above holds the needed mass.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from gpu import draw
from gpu.masked import Masked

Floats = npt.NDArray[np.float64]
Singles = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]
Indices = npt.NDArray[np.intp]
Records = npt.NDArray[np.void]

_TILE = 1 << 20
"""Logits in a tile: four MiB of float32, and eight of weights."""

_BLOCK = 64
"""Values in a block whose maximum is taken."""

_RANKS = (64, 1024)
"""Ranks of the block maxima that are the first cuts for top-p."""

_LOW_CUT = np.float32(2.0**-14 * draw.SCALE)
"""The cut after those: most distributions have nearly all their mass above it."""

_NO_CUT = np.float32(0)

_LEAST = np.finfo(np.float32).min
"""Below it is only minus infinity: tokens that a grammar forbids, of which there may be most."""


class DrawKind(enum.IntEnum):
    """How a row is chosen: the most likely token, or drawn, under no restriction, top-k with whatever else,
    top-p without top-k, or min-p alone; or not here."""

    GREEDY = 0
    FREE = 1
    RANK = 2
    MASS = 3
    RATIO = 4
    NONE = 5


@dataclasses.dataclass(frozen=True)
class _Tile:
    """Rows of one kind: float32 logits [g, vocab] and their maxima [g, 1], which are finite.

    limits: records as `CpuDraw.choose` takes them. uniform: float64 [g]. powers, weights: scratch space,
    float32 [g, vocab] and int64 [g, padded(vocab)].
    """

    logits: Tensor
    best: Tensor
    limits: Records
    uniform: Floats
    powers: Tensor
    weights: Tensor

    def some_exponentials(self, logits: Singles) -> Singles:
        """Of some logits [g, m] of each row."""
        powers: Singles = self._exponentials(torch.from_numpy(logits), torch.empty(logits.shape)).numpy()
        return powers

    def weigh(self) -> Tensor:
        """Fill powers and weights with all of them; returns the weights."""
        return draw.weigh(self._exponentials(self.logits, self.powers), self.weights)

    def _exponentials(self, logits: Tensor, out: Tensor) -> Tensor:
        temperature = torch.from_numpy(self.limits["temperature"].astype(np.float32))[:, None]
        return draw.exponentials(logits, self.best, temperature, out)

    def draw(self, powers: Singles, least: Singles, flat: Ints, begins: Ints) -> Ints:
        """Among candidates, those that reach least [g] and min-p, in the order of their ids: tokens [g].

        powers: float32 [g, m], padded with zeros, of the tokens at `flat` (as `above` gives them).
        """
        least = np.maximum(least, self.limits["min_p"].astype(np.float32) * np.float32(draw.SCALE))
        weights = np.where(powers >= least[:, None], powers, np.float32(0)).astype(np.int64)
        place, _ = _place(weights, self.uniform)
        tokens: Ints = flat[begins[:-1] + place] - np.arange(len(powers)) * self.logits.shape[1]
        return tokens


class CpuDraw:
    """Chooses tokens of a vocabulary; holds scratch space for one tile."""

    def __init__(self, vocab: int) -> None:
        self._height = max(1, _TILE // vocab)
        self._powers = torch.empty((self._height, vocab), dtype=torch.float32)
        self._weights = torch.empty((self._height, draw.padded(vocab)), dtype=torch.int64)

    def choose(
        self, logits: Tensor, limits: Records, uniform: Floats, masked: Masked | None = None
    ) -> tuple[Ints, Singles]:
        """For logits [n, vocab]: tokens, int64 [n], and greatest logits, float32 [n].

        limits: records with the fields kind, temperature, top_k (the size of the vocabulary where off),
        top_p and min_p (1 and 0 where off). uniform: float64 [n]. masked: rows with a mask, whose other
        logits do not count. A token means nothing where the greatest logit is not finite; it is NaN where any
        is.
        """
        kinds = limits["kind"]
        if masked is None and not kinds.any():
            return _greedy(logits)
        tokens, best = np.zeros(len(logits), np.int64), np.empty(len(logits), np.float32)
        if masked is not None:
            held = masked.rows
            tokens[held], best[held] = masked.choose(logits, limits, uniform, DrawKind.GREEDY)
            kinds = kinds.copy()
            kinds[held[tokens[held] >= 0]] = DrawKind.NONE
        for kind in np.flatnonzero(np.bincount(kinds)[: DrawKind.NONE]):
            for part in self._parts(np.flatnonzero(kinds == kind)):
                rows = rows_of(logits, part)
                if kind == DrawKind.GREEDY:
                    tokens[part], best[part] = _greedy(rows)
                else:
                    tokens[part], best[part] = self._draw(
                        rows, limits[part], uniform[part], _PICK[DrawKind(int(kind))]
                    )
        return tokens, best

    def _parts(self, indices: Indices) -> Iterator[Indices]:
        for start in range(0, len(indices), self._height):
            yield indices[start : start + self._height]

    def _draw(self, rows: Tensor, limits: Records, uniform: Floats, pick: _Pick) -> tuple[Ints, Singles]:
        """One tile of rows that are drawn; those with no finite greatest logit are left out."""
        best: Singles = rows.numpy().max(1)
        finite = np.isfinite(best)
        if finite.all():
            return pick(self._tile(rows, best, limits, uniform)), best
        tokens = np.zeros(len(rows), np.int64)
        if finite.any():
            kept = rows[torch.from_numpy(finite)]
            tokens[finite] = pick(self._tile(kept, best[finite], limits[finite], uniform[finite]))
        return tokens, best

    def _tile(self, rows: Tensor, best: Singles, limits: Records, uniform: Floats) -> _Tile:
        size = len(rows)
        scratch = self._powers[:size], self._weights[:size]
        return _Tile(rows, torch.from_numpy(best)[:, None], limits, uniform, *scratch)


_Pick = Callable[[_Tile], Ints]


def rows_of(logits: Tensor, part: Indices) -> Tensor:
    """float32 rows, in place where they lie together."""
    first, end = int(part[0]), int(part[-1]) + 1
    together = end - first == len(part)
    return (logits[first:end] if together else logits[torch.from_numpy(part)]).float()


def _greedy(logits: Tensor) -> tuple[Ints, Singles]:
    """The first of the greatest logits of each row, or a NaN.

    Through NumPy, whose float32 kernel measures twenty times as fast as torch's.
    """
    values = logits.float().numpy()
    tokens: Ints = values.argmax(1)
    return tokens, values[np.arange(len(values)), tokens]


def _free(tile: _Tile) -> Ints:
    """One pass over the vocabulary: sums of blocks, then the block that the draw falls into."""
    rows = np.arange(len(tile.logits))
    blocks = tile.weigh().view(len(rows), -1, draw.BLOCK)
    block, rest = _place(blocks.sum(2).numpy(), tile.uniform)
    inside = blocks.numpy()[rows, block].cumsum(1)
    tokens: Ints = block * draw.BLOCK + (inside <= rest[:, None]).sum(1)
    return tokens


def _by_rank(tile: _Tile) -> Ints:
    """Only about k logits of each row are ever exponentiated."""
    values, top_k = tile.logits.numpy(), tile.limits["top_k"]
    flat, begins = above(values, np.maximum(kth_maxima(tile.logits, top_k), _LEAST))
    logits = _packed(values.reshape(-1)[flat], begins, -np.inf)
    last = np.minimum(top_k, logits.shape[1])[:, None] - 1
    least = np.take_along_axis(_descending(logits), last, 1)
    logits[logits < least] = -np.inf
    powers = tile.some_exponentials(logits)
    ranked = _descending(powers)
    sums = ranked.astype(np.int64).cumsum(1)
    _, least_of_mass = _reach(ranked, sums, sums[:, -1], tile.limits["top_p"])
    return tile.draw(powers, least_of_mass, flat, begins)


def _by_mass(tile: _Tile) -> Ints:
    total, top_p = tile.weigh().sum(1).numpy(), tile.limits["top_p"]
    least, waiting, powers = np.empty(len(total), np.float32), np.arange(len(total)), tile.powers
    for cut in (*_RANKS, _LOW_CUT, _NO_CUT):
        ranked = _ranked(powers.numpy(), _cut(powers, cut))
        sums = ranked.astype(np.int64).cumsum(1)
        reached, least[waiting] = _reach(ranked, sums, total[waiting], top_p[waiting])
        if reached.all():
            break
        waiting = waiting[~reached]
        powers = tile.powers[torch.from_numpy(waiting)]
    flat, begins = above(tile.powers.numpy(), least)
    return tile.draw(_packed(tile.powers.numpy().reshape(-1)[flat], begins, 0.0), least, flat, begins)


def _by_ratio(tile: _Tile) -> Ints:
    """Exponentiates what may reach min-p: the slack is far more than float32 rounds off."""
    best, limits = tile.best[:, 0].numpy().astype(np.float64), tile.limits
    cut = best + limits["temperature"] * (np.log(limits["min_p"]) - 1e-3) - 1e-5 * np.abs(best)
    values = tile.logits.numpy()
    flat, begins = above(values, cut.astype(np.float32))
    powers = tile.some_exponentials(_packed(values.reshape(-1)[flat], begins, -np.inf))
    return tile.draw(powers, np.zeros(len(powers), np.float32), flat, begins)


def _cut(powers: Tensor, cut: int | np.float32) -> Singles:
    """A rung of the ladder for these rows: the maximum of a block of that rank, or that value."""
    if not isinstance(cut, int):
        return np.full(len(powers), cut)
    return np.maximum(kth_maxima(powers, np.full(len(powers), cut)), np.float32(0))


_PICK: dict[DrawKind, _Pick] = {
    DrawKind.FREE: _free,
    DrawKind.RANK: _by_rank,
    DrawKind.MASS: _by_mass,
    DrawKind.RATIO: _by_ratio,
}


def has_maxima(values: Tensor, k: int) -> bool:
    """Whether a row of values [n, vocab] has at least k blocks."""
    return values.shape[1] // _BLOCK >= k


def kth_maxima(values: Tensor, k: Ints) -> Singles:
    """What at least k[i] of the values [n, vocab] of row i reach: float32 [n].

    It is the k-th largest of the maxima of blocks, each of which is some value; -inf where there are
    fewer blocks.
    """
    rows, blocks = len(values), values.shape[1] // _BLOCK
    if not blocks:
        return np.full(rows, -np.inf, np.float32)
    maxima = values[:, : blocks * _BLOCK].view(rows, blocks, _BLOCK).amax(2).numpy()
    at = np.maximum(blocks - k, 0)
    maxima.partition(np.unique(at), axis=1)
    return np.where(k <= blocks, maxima[np.arange(rows), at], np.float32(-np.inf))


def above(values: Singles, least: Singles) -> tuple[Ints, Ints]:
    """Where row i of values [n, vocab] is at least least[i]: flat indices in order, and where each row's
    begin among them, [n + 1]."""
    flat = np.flatnonzero(values >= least[:, None])
    return flat, np.searchsorted(flat, np.arange(len(values) + 1) * values.shape[1])


def _packed(found: Singles, begins: Ints, filler: float) -> Singles:
    """Rows of different lengths, begins[i] .. begins[i + 1] of `found`, as one array."""
    if len(begins) == 2:
        return found[None]
    counts = np.diff(begins)
    columns = np.arange(counts.max())
    at = np.minimum(begins[:-1, None] + columns, len(found) - 1)
    return np.where(columns < counts[:, None], found[at], np.float32(filler))


def _descending(values: Singles) -> Singles:
    return np.sort(values, axis=1)[:, ::-1]


def _ranked(powers: Singles, cut: Singles) -> Singles:
    """The exponentials of each row that reach its cut, largest first, then zeros."""
    if not cut.any():
        return _descending(powers)
    flat, begins = above(powers, cut)
    return _descending(_packed(powers.reshape(-1)[flat], begins, 0.0))


def _reach(ranked: Singles, sums: Ints, total: Ints, top_p: Floats) -> tuple[npt.NDArray[np.bool_], Singles]:
    """Whether the sums reach the share top_p of the total, and the value with which they do: [g] each."""
    needed = np.ceil(total * top_p).astype(np.int64)
    last = (sums < needed[:, None]).sum(1)
    width = ranked.shape[1]
    return last < width, ranked[np.arange(len(ranked)), np.minimum(last, width - 1)]


def _place(sums: Ints, uniform: Floats) -> tuple[Indices, Ints]:
    """Where uniform * total falls among weights [g, m]: its index, and how far into that weight, [g]."""
    ends = sums.cumsum(1)
    target = (uniform * ends[:, -1]).astype(np.int64)
    place = (ends <= target[:, None]).sum(1)
    rows = np.arange(len(sums))
    return place, target - (ends[rows, place] - sums[rows, place])
