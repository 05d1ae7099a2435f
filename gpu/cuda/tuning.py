"""Which way to multiply few rows with a matrix is the quickest on this device: each is tried, once a shape.

A library's product of one row reaches anything between a half and nearly all of a GPU's bandwidth, depending
on the shape, and so do ours. All ways give the same numbers but for rounding.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from gpu.cuda.graphs import Recorder
from gpu.layers import Linear
from gpu.tiling import LIMITS, TILINGS, Tiling, Tilings

_CACHE = 256 << 20
"""Bytes of matrices that are read in a row, so that none is found in the device's cache."""
_TRIALS = 5
_ALIGNED = 16
"""Numbers of which the rows of a matrix have a multiple."""


class GraphClock:
    """Seconds that work takes on a GPU, its launches not counted."""

    def __init__(self, device: torch.device, recorder: Recorder) -> None:
        self._device, self._recorder = device, recorder

    def __call__(self, work: Callable[[], None]) -> float:
        """The best of some trials."""
        self._recorder.begin()
        replay = self._recorder.record(work)
        return min(self._once(replay) for _ in range(_TRIALS)) / 1e3

    def _once(self, replay: Callable[[], None]) -> float:
        make: Any = torch.cuda.Event
        begin, end = make(enable_timing=True), make(enable_timing=True)
        begin.record()
        replay()
        end.record()
        torch.cuda.synchronize(self._device)
        milliseconds: float = begin.elapsed_time(end)
        return milliseconds


class Tuner:
    """Of one device; remembers what it has found. clock: seconds that work takes."""

    def __init__(self, clock: Callable[[Callable[[], None]], float]) -> None:
        self._clock = clock
        self._found: dict[tuple[object, ...], Tilings] = {}

    @torch.inference_mode()
    def tune(self, linears: Iterable[Linear]) -> None:
        """Sealed maps of 16-bit numbers, or of 8 bits that stand for those, are given the best tilings, where
        their rows are aligned: others take more of a multiprocessor's memory than there is."""
        groups: dict[tuple[object, ...], list[Linear]] = {}
        for linear in linears:
            if linear.weight is None and linear.quantized is None:
                continue  # packed for a CPU
            matrix = _matrix(linear)
            if _dtype(linear).itemsize == 2 and matrix.shape[1] % _ALIGNED == 0:
                groups.setdefault((matrix.shape, matrix.dtype, linear.bias is None), []).append(linear)
        for shape, group in groups.items():
            if shape not in self._found:
                enough = group[: -(-_CACHE // _matrix(group[0]).nbytes)]
                self._found[shape] = tuple(self._best(enough, rows) for rows in LIMITS)
            for linear in group:
                linear.tilings = self._found[shape]

    def _best(self, group: Sequence[Linear], most: int) -> Tiling | None:
        """The best way for up to so many rows, of which few are tried with one: most steps that have few
        have that."""
        rows = 1 if most == LIMITS[0] else most
        matrix = _matrix(group[0])
        x = torch.randn(rows, matrix.shape[1], device=matrix.device).to(_dtype(group[0]))
        ways: list[Tiling | None] = [*TILINGS]
        if group[0].quantized is None:
            ways.insert(0, None)
        times = [self._clock(functools.partial(_multiply, group, x, way)) for way in ways]
        return ways[times.index(min(times))]


def _multiply(group: Sequence[Linear], x: Tensor, way: Tiling | None) -> None:
    for linear in group:
        linear.tilings = (way,) * len(LIMITS)
        linear(x)


def _matrix(linear: Linear) -> Tensor:
    matrix = linear.weight if linear.quantized is None else linear.quantized.numbers
    assert matrix is not None
    return matrix


def _dtype(linear: Linear) -> torch.dtype:
    return _matrix(linear).dtype if linear.quantized is None else linear.quantized.dtype
