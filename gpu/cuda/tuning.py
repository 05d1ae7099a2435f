"""Which way to multiply few rows with a matrix is the quickest on this device: each is tried, once a shape.

A library's product of one row reaches anything between a half and nearly all of a GPU's bandwidth, depending
on the shape, and so do ours. All ways give the same numbers but for rounding; and that the successor of an
executor that died rounds as it did, the choices are kept in a file.
"""

from __future__ import annotations

import functools
import os
import pathlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import msgspec
import torch
from torch import Tensor

from gpu import tiling
from gpu.cuda.graphs import CudaRecorder, Recorder
from gpu.layers import Linear
from gpu.tiling import LIMITS, TILINGS, Tiling, Tilings
from protocols.compiling import cache_directory, fingerprint, locked

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


class Choices:
    """The tilings chosen for each shape, in the file `path` where it can be written; the first choice for a
    shape stands, whoever made it."""

    def __init__(self, path: pathlib.Path) -> None:
        self._path = path
        self._known = self._read()

    @classmethod
    def of(cls, device: torch.device) -> Choices:
        """Those of all executors on this kind of GPU with these versions of what they run."""
        sources = [pathlib.Path(__file__).with_name("product_kernels.py"), pathlib.Path(tiling.__file__)]
        kind = torch.cuda.get_device_name(device), torch.__version__, torch.version.cuda
        return cls(cache_directory() / f"products-{fingerprint(sources, *kind)}.json")

    def get(self, shape: str) -> Tilings | None:
        """What was chosen for a shape."""
        return self._known.get(shape)

    def settle(self, shape: str, tilings: Tilings) -> Tilings:
        """`tilings`, unless another process has chosen meanwhile."""
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            with locked(self._path.with_suffix(".lock")):
                self._known = {shape: tilings} | self._known | self._read()
                scratch = self._path.with_suffix(".new")
                scratch.write_bytes(msgspec.json.encode(self._known))
                os.replace(scratch, self._path)
        except OSError:
            self._known.setdefault(shape, tilings)
        return self._known[shape]

    def _read(self) -> dict[str, Tilings]:
        try:
            return msgspec.json.decode(self._path.read_bytes(), type=dict[str, Tilings])
        except (OSError, msgspec.DecodeError):
            return {}


class Tuner:
    """Of one device. clock: seconds that work takes."""

    def __init__(self, clock: Callable[[Callable[[], None]], float], choices: Choices) -> None:
        self._clock = clock
        self._choices = choices

    @classmethod
    def on(cls, device: torch.device) -> Tuner:
        """The one that an executor on this GPU uses."""
        return cls(GraphClock(device, CudaRecorder(device)), Choices.of(device))

    @torch.inference_mode()
    def tune(self, linears: Iterable[Linear]) -> None:
        """Sealed maps of 16-bit numbers, or of 8 bits that stand for those, are given the best tilings, where
        their rows are aligned: others take more of a multiprocessor's memory than there is."""
        groups: dict[str, list[Linear]] = {}
        for linear in linears:
            if linear.weight is None and linear.quantized is None:
                continue  # packed for a CPU
            matrix = _matrix(linear)
            if _dtype(linear).itemsize == 2 and matrix.shape[1] % _ALIGNED == 0:
                shape = f"{'x'.join(map(str, matrix.shape))} {matrix.dtype} {linear.bias is not None}"
                groups.setdefault(shape, []).append(linear)
        for shape, group in groups.items():
            tilings = self._choices.get(shape)
            if tilings is None:
                enough = group[: -(-_CACHE // _matrix(group[0]).nbytes)]
                tilings = self._choices.settle(shape, tuple(self._best(enough, rows) for rows in LIMITS))
            for linear in group:
                linear.tilings = tilings

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
