"""The paged KV pool: for each layer one tensor of key pages and one of value pages.

Pages are [page_size, kv_heads, head_dim], so that the token at place p = page * page_size + offset is
row p of the flat view. The pool has one page more than it grants: it holds zeros for ever, and
padded index tensors point there, because other pages may hold anything (not-a-number times a
weight of zero is not zero).

Keys and values of 8 bits (e4m3) have a scale for each head of each token, a function of that token
alone: so what is read is the same in any crowd, and after a recovery.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from gpu.cuda.memory import FRACTION, pool_bytes
from gpu.occupation import discard, reclaim
from protocols.config import Config, KernelChoice, KvCacheDtype
from protocols.errors import StartError
from protocols.free_memory import available_memory

DEFAULT_CPU_BYTES = 4 << 30
CPU_FRACTION = 0.25
WORTHWHILE = 4
"""What running sequences do not fill serves the prefix cache, which has enough at some point."""
_MAX_PLACES = 2**31 - 1

EIGHT_BITS = torch.float8_e4m3fn
GREATEST = 448.0
"""Of its numbers."""


@dataclasses.dataclass(frozen=True, slots=True)
class KvShape:
    """What one layer keeps of a token: kv_heads keys of key_dim, kv_heads values of value_dim."""

    kv_heads: int
    key_dim: int
    value_dim: int

    @property
    def elements(self) -> int:
        """Numbers for each token."""
        return self.kv_heads * (self.key_dim + self.value_dim)


@dataclasses.dataclass(frozen=True, slots=True)
class LayerPages:
    """keys [pages + 1, page_size, kv_heads, key_dim] and values [..., value_dim] of one layer,
    and the same memory as one row a place: [(pages + 1) * page_size, kv_heads * dim]. key_scales,
    value_scales: float32 [(pages + 1) * page_size, kv_heads] of what has 8 bits, else None."""

    keys: Tensor
    values: Tensor
    key_rows: Tensor
    value_rows: Tensor
    key_scales: Tensor | None = None
    value_scales: Tensor | None = None


class KvPool:
    """All pages of all layers. Memory is reserved, not touched, until tokens are written."""

    def __init__(
        self,
        shapes: Sequence[KvShape],
        pages: int,
        page_size: int,
        dtype: torch.dtype,
        device: torch.device,
        stored: torch.dtype | None = None,
    ) -> None:
        """`pages` grantable pages for a model that computes in `dtype`, where keys and values are kept as
        `stored`, `dtype` if not told. StartError when the memory cannot be had."""
        if (pages + 1) * page_size > _MAX_PLACES:
            raise StartError(f"{pages} pages of {page_size} tokens are more than 2**31 tokens.")
        self.pages, self.page_size = pages, page_size
        self.shapes, self.dtype, self.device = tuple(shapes), dtype, device
        self.stored = dtype if stored is None else stored
        try:
            self.layers = tuple(self._layer(shape) for shape in shapes)
        except (RuntimeError, MemoryError, OSError) as error:
            size = token_bytes(shapes, self.stored) * page_size * pages
            raise StartError(f"cannot allocate a KV pool of {size / 2**30:.1f} GiB.") from error

    @property
    def size(self) -> int:
        """Bytes of all pages."""
        return sum(tensor.nbytes for tensor in self._tensors())

    def release(self) -> None:
        """Give the memory back to the system. What the pages held is lost."""
        for tensor in self._tensors():
            discard(tensor)

    def restore(self) -> None:
        """Take the memory again. The pages hold anything, but for the one of zeros."""
        for tensor in self._tensors():
            reclaim(tensor)
            tensor.view(self.pages + 1, -1)[-1].zero_()

    def _tensors(self) -> Iterator[Tensor]:
        for layer in self.layers:
            every = layer.keys, layer.values, layer.key_scales, layer.value_scales
            yield from (tensor for tensor in every if tensor is not None)

    @property
    def zero_place(self) -> int:
        """A place that holds zeros and is never written."""
        return self.pages * self.page_size

    def _layer(self, shape: KvShape) -> LayerPages:
        keys = self._pages(shape.kv_heads, shape.key_dim)
        values = self._pages(shape.kv_heads, shape.value_dim)
        places = (self.pages + 1) * self.page_size
        rows = keys.view(places, -1), values.view(places, -1)
        if self.stored is not EIGHT_BITS:
            return LayerPages(keys, values, *rows)
        size = places, shape.kv_heads
        scales = (torch.zeros(size, dtype=torch.float32, device=self.device) for _ in range(2))
        return LayerPages(keys, values, *rows, *scales)

    def _pages(self, kv_heads: int, dim: int) -> Tensor:
        size = (self.pages + 1, self.page_size, kv_heads, dim)
        pages = torch.empty(size, dtype=self.stored, device=self.device)
        pages[-1].zero_()
        return pages


def token_bytes(shapes: Sequence[KvShape], dtype: torch.dtype) -> int:
    """Bytes that one token takes in all layers, kept as `dtype`."""
    scales = sum(8 * shape.kv_heads for shape in shapes) if dtype is EIGHT_BITS else 0
    return sum(shape.elements for shape in shapes) * dtype.itemsize + scales


def stored_as(config: Config, dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """What keys and values of a model in `dtype` are kept as. StartError where the device cannot."""
    if config.kv_cache_dtype is KvCacheDtype.AUTO:
        return dtype
    if device.type == "cpu" and config.kernels is not KernelChoice.TORCH:
        raise StartError("--kv-cache-dtype fp8 is for GPUs; on a CPU it needs --kernels torch.", exit_code=2)
    check_eight_bits(device, "--kv-cache-dtype fp8")
    return EIGHT_BITS


def check_eight_bits(device: torch.device, option: str) -> None:
    """StartError where a GPU has no 8-bit floating-point numbers."""
    if device.type == "cuda" and torch.cuda.get_device_capability(device) < (8, 9):
        raise StartError(f"{option} needs a GPU of compute capability 8.9 or more.", exit_code=2)


def in_eight_bits(x: Tensor) -> tuple[Tensor, Tensor]:
    """Heads [rows, heads, dim] as e4m3 of the same shape, and the scale of each, float32 [rows, heads]."""
    scales = x.float().abs().amax(2).clamp_(min=1e-12) / GREATEST
    return (x.float() / scales[:, :, None]).to(EIGHT_BITS), scales


def choose_pages(
    config: Config,
    shapes: Sequence[KvShape],
    dtype: torch.dtype,
    device: torch.device,
    reserved: int = 0,
) -> int:
    """Number of pages: `config.pages`, or what fits in `config.kv_memory`, or in a share of what is free,
    but then no more than `WORTHWHILE` times what the running sequences can fill. reserved: bytes of a GPU
    that steps need besides.

    StartError when not even one sequence of the full context fits.
    """
    if config.pages:
        return config.pages
    page = token_bytes(shapes, dtype) * config.page_size
    one = -(-config.model.context // config.page_size)
    pages = min(_budget(config, device, reserved) // page, _MAX_PLACES // config.page_size - 1)
    if pages < one:
        raise StartError(
            f"a KV pool of {pages * page / 2**20:.0f} MiB holds {pages * config.page_size} tokens, less than "
            f"the context of {config.model.context}: give it {one * page / 2**20:.0f} MiB (--kv-memory), "
            "or shorten the context (--max-model-len)."
        )
    return pages if config.kv_memory else min(pages, WORTHWHILE * config.max_running * one)


def _budget(config: Config, device: torch.device, reserved: int) -> int:
    if config.kv_memory:
        return config.kv_memory
    if device.type == "cuda":
        torch.cuda.empty_cache()
        return pool_bytes(*torch.cuda.mem_get_info(device), config.memory_fraction or FRACTION, reserved)
    if config.memory_fraction:
        return int(available_memory() * config.memory_fraction)
    return min(DEFAULT_CPU_BYTES, int(available_memory() * CPU_FRACTION))
