"""The backends against attention written out, over random steps, with pages full of NaN elsewhere."""

from __future__ import annotations

import functools
import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gpu.attention import Backend, Spec, torch_sdpa
from gpu.attention.torch_sdpa import TorchAttention
from gpu.cpu import build
from gpu.cpu.attention import CpuAttention
from gpu.cpu.library import Kernels
from gpu.kv_pool import KvPool, KvShape
from protocols.compiling import Unavailable
from tests.gpu import attention_case
from tests.gpu.attention_case import HEADS, PAGE

BACKENDS = ("torch", "cpu")


@functools.cache
def kernels(threads: int = 2) -> Kernels:
    """The CPU's kernels, or a skipped test where there is no compiler."""
    try:
        return Kernels(build.load(print), threads)
    except Unavailable as reason:
        pytest.skip(str(reason))


def backend(name: str, pool: KvPool) -> Backend:
    """A backend over the pool."""
    return TorchAttention(pool) if name == "torch" else CpuAttention(pool, kernels())


class Case(attention_case.Case):
    """Runs on a backend by its name."""

    def run(self, spec: Spec, decodes: int, sinks: bool = False, name: str = "torch") -> Tensor:
        """The backend's answer to the step."""
        return self.run_on(backend(name, self.pool), spec, decodes, sinks)


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
    page=st.sampled_from([1, 4, 16, 64]),
)
@torch.inference_mode()
def test_random_steps(
    step: tuple[list[int], list[int], int], window: int, softcap: float, sinks: bool, name: str, page: int
) -> None:
    contexts, query_lens, decodes = step
    case, spec = Case(contexts, query_lens, page=page), Spec(scale=0.4, window=window, softcap=softcap)
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
@pytest.mark.parametrize("page", [4, 16])
@torch.inference_mode()
def test_values_narrower_than_keys(name: str, page: int) -> None:
    case = Case([9, 5, 12], [9, 2, 1], KvShape(kv_heads=3, key_dim=12, value_dim=5), page=page)
    spec = Spec(0.3)
    got = case.run(spec, decodes=1, name=name)
    assert got.shape == (12, HEADS, 5)
    assert torch.allclose(got.double(), case.expected(spec), atol=1e-5)


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("page", [4, 16])
@torch.inference_mode()
def test_bfloat16(name: str, page: int) -> None:
    case = Case([9, 5, 30, 2], [9, 2, 1, 1], dtype=torch.bfloat16, page=page)
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
@pytest.mark.parametrize(("window", "page"), [(0, 4), (0, 16), (70, 32), (70, 128)])
@torch.inference_mode()
def test_long_contexts_of_many_blocks_of_keys(dtype: torch.dtype, dim: int, window: int, page: int) -> None:
    shape = KvShape(kv_heads=2, key_dim=dim, value_dim=dim)
    case, spec = Case([130, 300, 64, 65], [75, 20, 1, 1], shape, dtype, page), Spec(dim**-0.5, window)
    got = case.run(spec, decodes=2, name="cpu").double()
    assert torch.allclose(got, case.expected(spec), atol=1e-5 if dtype == torch.float32 else 3e-2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.inference_mode()
def test_scores_that_climb_from_block_to_block(dtype: torch.dtype) -> None:
    """What was summed before weighs less and less, in the end nothing."""
    case, spec = Case([700, 500], [3, 200], dtype=dtype), Spec(1.0)
    for keys in case.keys:
        keys *= torch.linspace(0, 12, len(keys)).to(dtype)[:, None, None]
    got = case.run(spec, decodes=0, name="cpu").double()
    assert torch.allclose(got, case.expected(spec), atol=1e-4 if dtype == torch.float32 else 3e-2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("window", [0, 100])
@pytest.mark.parametrize("page", [16, 32, 128])
@torch.inference_mode()
def test_sequences_that_share_pages_get_the_bits_that_each_gets_by_itself(
    dtype: torch.dtype, window: int, page: int
) -> None:
    case = Case([300, 257, 310, 140, 300, 90], [1, 1, 3, 1, 1, 2], dtype=dtype, page=page)
    for row, positions in ((1, 256), (2, 256), (3, 139), (4, 192), (5, 64)):
        case.share(row, 0, positions)
    spec, chosen = Spec(0.3, window), CpuAttention(case.pool, kernels(1))
    together = case.run_on(chosen, spec, decodes=0)
    close = 1e-5 if dtype == torch.float32 else 3e-2
    assert torch.allclose(together.double(), case.expected(spec), atol=close)
    assert torch.equal(torch.cat([case.alone(chosen, spec, row) for row in range(6)]), together)
    assert torch.equal(case.run_on(CpuAttention(case.pool, kernels(2)), spec, decodes=0), together)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("window", [0, 9, 64])
@torch.inference_mode()
def test_kernels_give_a_row_the_same_bits_in_any_company(dtype: torch.dtype, window: int) -> None:
    """A prompt in one piece, in two, and its last row alone; in pages of any size."""
    spec, length = Spec(0.3, window), 200
    rows = Case([length], [length], dtype=dtype).run(spec, decodes=0, name="cpu")
    for size, page in itertools.product((200, 151, 7, 1), (4, 16, 64)):
        part = Case([length], [length], dtype=dtype, page=page)
        part.query_lens, part.queries = [size], [part.queries[0][-size:]]
        assert torch.equal(part.run(spec, decodes=int(size == 1), name="cpu"), rows[-size:])
