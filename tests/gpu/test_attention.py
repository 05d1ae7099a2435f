"""The backends against attention written out, over random steps, with pages full of NaN elsewhere."""

from __future__ import annotations

import functools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gpu.attention import Backend, Batch, CpuAttention, Spec, TorchAttention, torch_sdpa
from gpu.cpu import build
from gpu.cpu.library import Kernels
from gpu.kv_pool import KvPool, KvShape

PAGE = 4
BACKENDS = ("torch", "cpu")
HEADS, SHAPE = 6, KvShape(kv_heads=2, key_dim=8, value_dim=8)


@functools.cache
def kernels(threads: int = 2) -> Kernels:
    """The CPU's kernels, or a skipped test where there is no compiler."""
    try:
        return Kernels(build.load(print), threads)
    except build.Unavailable as reason:
        pytest.skip(str(reason))


def backend(name: str, pool: KvPool) -> Backend:
    """A backend over the pool."""
    return TorchAttention(pool) if name == "torch" else CpuAttention(pool, kernels())


class Case:
    """Sequences of random keys and values, of which the last `query_lens` positions are this step's."""

    def __init__(
        self,
        contexts: list[int],
        query_lens: list[int],
        shape: KvShape = SHAPE,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.contexts, self.query_lens, self.shape = contexts, query_lens, shape
        generator = torch.Generator().manual_seed(len(contexts) * 1000 + sum(contexts))

        def random(rows: int, heads: int, dim: int) -> Tensor:
            return torch.randn(rows, heads, dim, generator=generator).to(dtype)

        self.keys = [random(size, shape.kv_heads, shape.key_dim) for size in contexts]
        self.values = [random(size, shape.kv_heads, shape.value_dim) for size in contexts]
        self.queries = [random(size, HEADS, shape.key_dim) for size in query_lens]
        self.sinks = torch.randn(HEADS, generator=generator).to(dtype)
        self._lay_out(dtype)

    def _lay_out(self, dtype: torch.dtype) -> None:
        pages = [math.ceil(size / PAGE) for size in self.contexts]
        self.pool = KvPool([self.shape], sum(pages) + 3, PAGE, dtype, torch.device("cpu"))
        numbers = np.random.default_rng(0).permutation(self.pool.pages).astype(np.int32)
        self.tables = np.zeros((len(pages), max(pages)), np.int32)
        layer = self.pool.layers[0]
        layer.keys[:-1], layer.values[:-1] = torch.nan, torch.nan
        places, positions = [], []
        for row, (context, length) in enumerate(zip(self.contexts, self.query_lens, strict=True)):
            self.tables[row, : pages[row]], numbers = (
                np.split(numbers, [pages[row]])[0],
                numbers[pages[row] :],
            )
            at = np.arange(context)
            place = self.tables[row, at // PAGE].astype(np.int64) * PAGE + at % PAGE
            before = torch.from_numpy(place[: context - length])
            layer.key_rows[before] = self.keys[row][: context - length].flatten(1)
            layer.value_rows[before] = self.values[row][: context - length].flatten(1)
            places.append(place[context - length :])
            positions.append(at[context - length :])
        self.places, self.positions = np.concatenate(places), np.concatenate(positions)

    def run(self, spec: Spec, decodes: int, sinks: bool = False, name: str = "torch") -> Tensor:
        """The backend's answer."""
        batch = Batch(
            query_lens=np.array(self.query_lens, np.int64),
            contexts=np.array(self.contexts, np.int64),
            block_tables=self.tables,
            positions=self.positions,
            places=self.places,
            decodes=decodes,
        )
        own = [context - length for context, length in zip(self.contexts, self.query_lens, strict=True)]
        return (
            backend(name, self.pool)
            .prepare(batch)
            .attend(
                0,
                torch.cat(self.queries),
                torch.cat([keys[start:] for keys, start in zip(self.keys, own, strict=True)]),
                torch.cat([values[start:] for values, start in zip(self.values, own, strict=True)]),
                spec,
                self.sinks if sinks else None,
            )
        )

    def expected(self, spec: Spec, sinks: bool = False) -> Tensor:
        """The answer written out in float64, row by row."""
        out = []
        for query, key, value in zip(self.queries, self.keys, self.values, strict=True):
            start = len(key) - len(query)
            for row, vector in enumerate(query.double()):
                position = start + row
                first = max(0, position - spec.window + 1) if spec.window else 0
                seen = slice(first, position + 1)
                shared = HEADS // self.shape.kv_heads
                k = key[seen].double().repeat_interleave(shared, dim=1)
                v = value[seen].double().repeat_interleave(shared, dim=1)
                scores = torch.einsum("hd,lhd->hl", vector, k) * spec.scale
                if spec.softcap:
                    scores = spec.softcap * torch.tanh(scores / spec.softcap)
                extra = self.sinks.double()[:, None] if sinks else torch.full((HEADS, 1), -torch.inf)
                weights = torch.cat((scores, extra), dim=1).softmax(1)[:, :-1]
                out.append(torch.einsum("hl,lhd->hd", weights, v))
        return torch.stack(out)


@st.composite
def steps(draw: st.DrawFn) -> tuple[list[int], list[int], int]:
    """Contexts, query lengths and the number of decodes at the end."""
    chunks = draw(st.lists(st.tuples(st.integers(1, 9), st.integers(0, 12)), max_size=3))
    decodes = draw(st.lists(st.integers(1, 40), min_size=0 if chunks else 1, max_size=5))
    contexts = [length + before for length, before in chunks] + decodes
    return contexts, [length for length, _ in chunks] + [1] * len(decodes), len(decodes)


@settings(max_examples=150, deadline=None)
@given(
    step=steps(),
    window=st.sampled_from([0, 1, 3, 8]),
    softcap=st.sampled_from([0.0, 1.5]),
    sinks=st.booleans(),
    name=st.sampled_from(BACKENDS),
)
@torch.inference_mode()
def test_random_steps(
    step: tuple[list[int], list[int], int], window: int, softcap: float, sinks: bool, name: str
) -> None:
    contexts, query_lens, decodes = step
    case, spec = Case(contexts, query_lens), Spec(scale=0.4, window=window, softcap=softcap)
    got = case.run(spec, decodes, sinks, name)
    assert torch.allclose(got.double(), case.expected(spec, sinks), atol=1e-5)


@pytest.mark.parametrize("name", BACKENDS)
@torch.inference_mode()
def test_keys_and_values_land_in_their_places_and_nowhere_else(name: str) -> None:
    case = Case([6, 3], [6, 1])
    case.run(Spec(1.0), decodes=1, name=name)
    keys = case.pool.layers[0].key_rows
    assert torch.equal(keys[torch.from_numpy(case.places[:6])], case.keys[0].flatten(1))
    written = {*case.places.tolist(), *(int(case.tables[1, 0]) * PAGE + offset for offset in (0, 1))}
    assert set(torch.nonzero(~keys.isnan().any(1))[:, 0].tolist()) == written | set(
        range(case.pool.zero_place, case.pool.zero_place + PAGE)
    )


@pytest.mark.parametrize("name", BACKENDS)
@torch.inference_mode()
def test_values_narrower_than_keys(name: str) -> None:
    case = Case([9, 5, 12], [9, 2, 1], KvShape(kv_heads=3, key_dim=12, value_dim=5))
    spec = Spec(0.3)
    got = case.run(spec, decodes=1, name=name)
    assert got.shape == (12, HEADS, 5)
    assert torch.allclose(got.double(), case.expected(spec), atol=1e-5)


@pytest.mark.parametrize("name", BACKENDS)
@torch.inference_mode()
def test_bfloat16(name: str) -> None:
    case = Case([9, 5, 30, 2], [9, 2, 1, 1], dtype=torch.bfloat16)
    spec = Spec(0.3)
    assert torch.allclose(case.run(spec, decodes=2, name=name).double(), case.expected(spec), atol=3e-2)


@pytest.mark.parametrize("window", [0, 16])
@torch.inference_mode()
def test_decodes_of_very_different_length_are_grouped(window: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_sdpa, "_SPLIT_ABOVE", 8)
    contexts = [3, 200, 7, 110, 1, 190, 60]
    case, spec = Case(contexts, [1] * 7), Spec(0.3, window)
    assert torch.allclose(case.run(spec, decodes=7).double(), case.expected(spec), atol=1e-5)
    groups = torch_sdpa._similar(np.minimum(contexts, window or 1000))
    assert [None if group is None else sorted(group.tolist()) for group in groups] == (
        [None] if window else [[1, 3, 5], [6], [2], [0], [4]]
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dim", [24, 64, 80, 128, 256])
@pytest.mark.parametrize("window", [0, 70])
@torch.inference_mode()
def test_long_contexts_of_many_blocks_of_keys(dtype: torch.dtype, dim: int, window: int) -> None:
    shape = KvShape(kv_heads=2, key_dim=dim, value_dim=dim)
    case, spec = Case([130, 300, 64, 65], [75, 20, 1, 1], shape, dtype), Spec(dim**-0.5, window)
    got = case.run(spec, decodes=2, name="cpu").double()
    assert torch.allclose(got, case.expected(spec), atol=1e-5 if dtype == torch.float32 else 3e-2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("window", [0, 9, 64])
@torch.inference_mode()
def test_kernels_give_a_row_the_same_bits_in_any_company(dtype: torch.dtype, window: int) -> None:
    """A prompt in one piece, in two, and its last row alone."""
    spec, length = Spec(0.3, window), 200
    whole = Case([length], [length], dtype=dtype)
    rows = whole.run(spec, decodes=0, name="cpu")
    for size in (150, 7, 1):
        part = Case([length], [size], dtype=dtype)
        part.queries = [whole.queries[0][-size:]]
        assert torch.equal(part.keys[0], whole.keys[0])
        assert torch.equal(part.run(spec, decodes=int(size == 1), name="cpu"), rows[-size:])
