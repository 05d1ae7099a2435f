"""The kernels' C interface: structures as in `kernels/decoder.h`, and one `Kernels` object that calls them.

Tensors are passed by address: whoever fills a structure keeps the tensors alive and contiguous.
"""

from __future__ import annotations

import ctypes
import dataclasses
import enum
import weakref
from collections.abc import Iterator
from ctypes import POINTER, Structure, byref, c_float, c_int, c_int32, c_int64, c_void_p

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from gpu.cpu import memory
from protocols.compiling import Unavailable


class ElementType(enum.IntEnum):
    """How numbers are stored, as in `enum Kind`."""

    FLOAT = 0
    BFLOAT16 = 1
    INT8 = 2


ELEMENT_TYPES = {
    torch.float32: ElementType.FLOAT,
    torch.bfloat16: ElementType.BFLOAT16,
    torch.int8: ElementType.INT8,
}
COLUMNS = 64
"""Rows of a weight matrix that are packed together."""
HALF_PANEL = COLUMNS // 2
"""Gate rows, then as many up rows, make a panel."""
UNITS = 16
"""Rows of numbers that are multiplied are padded to a multiple of so many units of 4 bytes."""
_SPARE_ROWS = 32
Longs = npt.NDArray[np.int64]
Masks = npt.NDArray[np.uint32]


class LinearStruct(Structure):
    """`struct Linear`."""

    _fields_ = (
        ("weight", c_void_p),
        ("scale", c_void_p),
        ("bias", c_void_p),
        ("n", c_int64),
        ("k", c_int64),
        ("kind", c_int32),
    )


class PagesStruct(Structure):
    """`struct Pages`."""

    _fields_ = (("keys", c_void_p), ("values", c_void_p))


class HeadsStruct(Structure):
    """`struct Heads`."""

    _fields_ = tuple((name, c_int64) for name in ("heads", "kv_heads", "key_dim", "value_dim", "page_size"))


class MannerStruct(Structure):
    """`struct Manner`."""

    _fields_ = (("scale", c_float), ("softcap", c_float), ("window", c_int64), ("sinks", c_void_p))


class BatchStruct(Structure):
    """`struct Batch`."""

    _fields_ = (
        ("rows", c_int64),
        ("sequences", c_int64),
        ("query_lens", c_void_p),
        ("contexts", c_void_p),
        ("positions", c_void_p),
        ("places", c_void_p),
        ("tables", c_void_p),
        ("table_width", c_int64),
    )


class LayerStruct(Structure):
    """`struct Layer`."""

    _fields_ = (
        *((name, LinearStruct) for name in ("qkv", "output", "gate_up", "down")),
        *((name, c_void_p) for name in ("before_attention", "before_mlp", "query_norm", "key_norm")),
        ("pages", PagesStruct),
        ("window", c_int64),
    )


class ModelStruct(Structure):
    """`struct Model`."""

    _fields_ = (
        *((name, c_int64) for name in ("hidden", "inner", "vocab", "layers", "activation", "kind")),
        ("eps", c_float),
        ("scale", c_float),
        ("heads", HeadsStruct),
        *((name, c_void_p) for name in ("embedding", "cos", "sin", "norm")),
        ("head", LinearStruct),
        ("layer", POINTER(LayerStruct)),
    )


class LowRankStruct(Structure):
    """`struct LowRank`."""

    _fields_ = (("ranks", c_int64), *((name, c_void_p) for name in ("down", "scale", "up", "blocks")))


class AdaptedStruct(Structure):
    """`struct Adapted`."""

    _fields_ = (
        ("change", c_void_p),
        ("maps", c_int64),
        ("adapter", c_void_p),
        ("rows", c_void_p),
        ("count", c_int64),
        ("most", c_int64),
    )


class StepStruct(Structure):
    """`struct Step`."""

    _fields_ = (
        ("batch", BatchStruct),
        ("tokens", c_void_p),
        ("wanted", c_void_p),
        ("wanted_count", c_int64),
        ("logits", c_void_p),
        ("tapped", c_void_p),
        ("tapped_count", c_int64),
        ("states", c_void_p),
        ("adapted", AdaptedStruct),
        ("likeliest", c_void_p),
    )


WORKS = (
    "other products",
    "embedding",
    "norms",
    "qkv",
    "rope, keys and values",
    "attention",
    "output",
    "gate and up",
    "down",
    "head",
    "likeliest",
    "adapters",
)
"""Kinds of work, as in `enum Work`."""

_LAYOUT = (
    *map(
        ctypes.sizeof,
        (
            LinearStruct,
            PagesStruct,
            HeadsStruct,
            MannerStruct,
            BatchStruct,
            LayerStruct,
            ModelStruct,
            StepStruct,
            LowRankStruct,
            AdaptedStruct,
        ),
    ),
    COLUMNS,
    _SPARE_ROWS,
    UNITS,
    HALF_PANEL,
    len(WORKS),
)
"""As `layout` in `kernels/library.cpp` gives it: sizes of the structures, then constants."""


@dataclasses.dataclass(frozen=True, slots=True)
class Packed:
    """A weight matrix [n, k] in the kernels' layout. scale, bias: float32, of whole panels, or None."""

    weight: Tensor
    scale: Tensor | None
    bias: Tensor | None
    n: int
    k: int
    kind: ElementType

    def struct(self) -> LinearStruct:
        """For a call; valid as long as this object lives."""
        return LinearStruct(
            self.weight.data_ptr(), address(self.scale), address(self.bias), self.n, self.k, self.kind
        )

    def parts(self, name: str) -> Iterator[tuple[str, Tensor]]:
        """What lies in memory, under names that begin with `name`."""
        for part in ("weight", "scale", "bias"):
            tensor = getattr(self, part)
            if tensor is not None:
                yield f"{name}.{part}", tensor


def address(tensor: Tensor | None) -> int | None:
    """Where a contiguous tensor lies; None for none."""
    return None if tensor is None else tensor.data_ptr()


class Kernels:
    """The compiled kernels with their team of threads."""

    def __init__(self, library: ctypes.CDLL, threads: int) -> None:
        """Raises Unavailable when the library was made for other structures, or threads cannot be had."""
        self._library = library
        self.threads = threads
        library.machine_new.restype = c_void_p
        library.packed_bytes.restype = library.model_decode.restype = c_int64
        found = (c_int64 * len(_LAYOUT))()
        library.layout(found)
        if tuple(found) != _LAYOUT:
            raise Unavailable("they were compiled for other structures")
        self._machine = c_void_p(library.machine_new(c_int(threads)))
        if not self._machine:
            raise Unavailable(f"{threads} threads could not be started")
        weakref.finalize(self, library.machine_free, self._machine).atexit = False
        self._forward = library.model_forward
        self._forward.restype = None

    def use_tiles(self, wanted: bool) -> bool:
        """Multiply bfloat16 on the processor's tiles (AMX) or not; whether it is able to."""
        return bool(self._library.machine_tiles(c_int(wanted)))

    def measure(self, wanted: bool) -> None:
        """Begin to measure where the team's time goes, with nothing spent, or end it."""
        self._library.machine_measure(self._machine, c_int(wanted))

    def spent(self) -> npt.NDArray[np.int64]:
        """Nanoseconds [threads, kinds of `WORKS`, (working, waiting for others)] since `measure`."""
        spent = np.zeros((self.threads, len(WORKS), 2), np.int64)
        self._library.machine_spent(self._machine, c_void_p(spent.ctypes.data))
        return spent

    def pack(self, weight: Tensor, bias: Tensor | None = None, scale: Tensor | None = None) -> Packed:
        """Pack weight [n, k] of float32, bfloat16, or int8 with a scale for each row."""
        weight = weight.contiguous()
        (n, k), kind = weight.shape, ELEMENT_TYPES[weight.dtype]
        size = self._library.packed_bytes(c_int(kind), c_int64(n), c_int64(k))
        packed = memory.zeros(size)
        self._library.pack_weight(
            c_int(kind), c_void_p(weight.data_ptr()), c_int64(n), c_int64(k), c_void_p(packed.data_ptr())
        )
        return Packed(packed, _padded(scale, n), _padded(bias, n), n, k, kind)

    def linear(self, packed: Packed, x: Tensor) -> Tensor:
        """y = x W^T + b in float32, for checks: x [m, k] of float32 or bfloat16."""
        per_unit = 1 if packed.kind is ElementType.FLOAT else 2
        width = -(-packed.k // (per_unit * UNITS)) * per_unit * UNITS
        padded = x.new_zeros(len(x) + _SPARE_ROWS, width)
        padded[: len(x), : packed.k] = x
        y = torch.empty(len(x), packed.n)
        struct = packed.struct()
        self._library.linear_forward(
            self._machine,
            byref(struct),
            c_void_p(padded.data_ptr()),
            c_int64(len(x)),
            c_void_p(y.data_ptr()),
        )
        return y

    def draw_masked(
        self, logits: Tensor, rows: Longs, masks: Masks, limits: npt.NDArray[np.void], most: int
    ) -> tuple[Longs, npt.NDArray[np.float32]]:
        """A token for each of rows [n] of float32 logits [*, vocab], of those that masks [n, words] allow, a
        bit for each token, and its greatest allowed logit [n]; all contiguous. limits: records as in `struct
        Limits`. Where more than `most` tokens would have to be sorted there is none (-1), and the row keeps
        what is allowed."""
        chosen, best = np.empty(len(rows), np.int64), np.empty(len(rows), np.float32)
        self._library.draw_masked(
            c_void_p(logits.data_ptr()),
            c_int64(logits.shape[1]),
            c_void_p(rows.ctypes.data),
            c_int64(len(rows)),
            c_void_p(masks.ctypes.data),
            c_int64(masks.shape[1]),
            c_int64(most),
            c_void_p(limits.ctypes.data),
            c_void_p(chosen.ctypes.data),
            c_void_p(best.ctypes.data),
        )
        return chosen, best

    def forward(self, model: ModelStruct, step: StepStruct) -> None:
        """Run a step of a model."""
        self._forward(self._machine, byref(model), byref(step))

    def decode(self, model: ModelStruct, step: StepStruct, rounds: int) -> int:
        """Run so many steps in a row, each with the most likely token of the one before, into
        `step.likeliest` [rounds, rows]; how many came to an end, as a row may have no likeliest token."""
        return int(self._library.model_decode(self._machine, byref(model), byref(step), c_int64(rounds)))

    def attend(
        self,
        heads: HeadsStruct,
        manner: MannerStruct,
        pages: PagesStruct,
        batch: BatchStruct,
        tensors: tuple[Tensor, Tensor, Tensor],
        out: Tensor,
    ) -> None:
        """Store keys and values of a step's rows, attend. tensors: query, key, value; all contiguous."""
        self._library.attention(
            self._machine,
            c_int(ELEMENT_TYPES[out.dtype]),
            byref(heads),
            byref(manner),
            byref(pages),
            byref(batch),
            *(c_void_p(tensor.data_ptr()) for tensor in tensors),
            c_void_p(out.data_ptr()),
        )


def _padded(numbers: Tensor | None, n: int) -> Tensor | None:
    if numbers is None:
        return None
    result = torch.zeros(-(-n // COLUMNS) * COLUMNS)
    result[:n] = numbers
    return result
