"""Our Triton kernels against attention written out, in every shape that a model may have."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gpu.attention import Batch, Spec
from gpu.attention.torch_sdpa import TorchAttention
from gpu.kv_pool import EIGHT_BITS, KvPool, KvShape
from tests.gpu import interpreted
from tests.gpu.attention_case import Case
from tests.gpu.interpreted import DEVICE

if interpreted.DEVICE:
    from gpu.attention.paged import PagedAttention
    from gpu.attention.triton_paged import TritonKernel, store

pytestmark = pytest.mark.timeout(300)


def backend(pool: KvPool) -> PagedAttention:
    """Ours for chunks and for decodes, which become few programs: the interpreter is slow."""
    kernel = TritonKernel(pool, programs=4)
    return PagedAttention(pool, kernel, kernel, store)


def check(case: Case, spec: Spec, decodes: int, sinks: bool = False, tolerance: float = 1e-5) -> None:
    got = case.run_on(backend(case.pool), spec, decodes, sinks, written=True)
    assert got.shape == (sum(case.query_lens), case.heads, case.shape.value_dim)
    assert torch.allclose(got.double(), case.expected(spec, sinks), atol=tolerance)


@pytest.mark.parametrize(
    ("dim", "page"),
    [(64, 16), (64, 256), (80, 1), (80, 64), (96, 16), (96, 256), (128, 1), (128, 64), (256, 16)],
)
@torch.inference_mode()
def test_head_sizes_and_page_sizes(dim: int, page: int) -> None:
    """Two chunks, one of them behind a context, and two decodes in one step."""
    case = Case([21, 40, 33, 2], [21, 7, 1, 1], KvShape(2, dim, dim), page=page, heads=4)
    check(case, Spec(dim**-0.5), decodes=2)


@pytest.mark.parametrize(
    ("heads", "kv_heads", "window"),
    [(4, 4, 0), (6, 2, 9), (7, 1, 0), (14, 2, 0), (14, 2, 9), (32, 1, 0), (32, 1, 9)],
)
@torch.inference_mode()
def test_groupings_and_windows(heads: int, kv_heads: int, window: int) -> None:
    case = Case([30, 25, 3], [11, 1, 1], KvShape(kv_heads, 16, 16), page=16, heads=heads)
    check(case, Spec(0.3, window), decodes=2)


@torch.inference_mode()
def test_numbers_beyond_two_to_the_31st() -> None:
    """Of a layer's keys, as a large GPU's pool has them: what is written there is what is read there. Nothing
    of the rest is touched, so it takes no memory."""
    far = 2**31 // (16 * 256) + 5
    shapes, lengths, query_lens = [KvShape(1, 256, 256)], np.array([6, 20]), np.array([6, 1])
    few, many = (KvPool(shapes, pages, 16, torch.float32, DEVICE, EIGHT_BITS) for pages in (8, far))
    query, key, value = (torch.randn(7, heads, 256, device=DEVICE) for heads in (2, 1, 1))
    found = []
    for pool, tables in ((few, [[0, 1], [2, 3]]), (many, [[far - 3, 1], [far - 4, far - 2]])):
        for pages in (pool.layers[0].keys, pool.layers[0].values):
            pages.view(torch.uint8)[tables[1]] = 0
        positions = np.array([*range(6), 19])
        places = np.array([tables[0][0]] * 6 + [tables[1][1]]) * 16 + positions % 16
        batch = Batch(query_lens, lengths, np.array(tables, np.int32), positions, places, 1)
        step = backend(pool).prepare(batch)
        found.append(step.attend(0, query, key, value, Spec(0.1)))
    assert places.max() * 256 > 2**31 and bool(many.layers[0].key_rows[int(places.max())].float().any())
    assert torch.equal(*found) and bool(found[0].any())


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@torch.inference_mode()
def test_long_contexts_are_parted(dtype: torch.dtype) -> None:
    """Decodes of one, two and many parts; a chunk of several tiles."""
    case = Case([170, 900, 257, 255], [150, 1, 1, 1], KvShape(1, 16, 16), dtype, page=16, heads=2)
    check(case, Spec(0.2), decodes=3, tolerance=1e-5 if dtype == torch.float32 else 5e-3)


@torch.inference_mode()
def test_a_decode_has_the_same_bits_in_any_crowd() -> None:
    spec, shape = Spec(0.2), KvShape(1, 16, 16)
    crowd = Case([700, 31, 5], [1, 1, 1], shape, page=16, heads=2)
    alone = Case([700, 31, 5], [1, 1, 1], shape, page=16, heads=2)
    together = crowd.run_on(backend(crowd.pool), spec, decodes=3, written=True)
    for each in (alone.contexts, alone.query_lens, alone.queries, alone.keys, alone.values):
        del each[1:]
    assert torch.equal(alone.run_on(backend(alone.pool), spec, decodes=1, written=True)[0], together[0])


@settings(max_examples=8, deadline=None)
@given(
    chunks=st.lists(st.tuples(st.integers(1, 9), st.integers(0, 12)), max_size=2),
    decodes=st.lists(st.integers(1, 40), min_size=1, max_size=3),
    window=st.sampled_from([0, 1, 3, 8]),
    softcap=st.sampled_from([0.0, 1.5]),
    sinks=st.booleans(),
    page=st.sampled_from([1, 4, 16]),
    value_dim=st.sampled_from([5, 8]),
)
@torch.inference_mode()
def test_random_steps(
    chunks: list[tuple[int, int]],
    decodes: list[int],
    window: int,
    softcap: float,
    sinks: bool,
    page: int,
    value_dim: int,
) -> None:
    contexts = [length + before for length, before in chunks] + decodes
    query_lens = [length for length, _ in chunks] + [1] * len(decodes)
    case = Case(contexts, query_lens, KvShape(2, 8, value_dim), page=page)
    check(case, Spec(0.4, window, softcap), len(decodes), sinks)


@torch.inference_mode()
def test_rows_of_no_place_and_no_context_touch_nothing_and_give_zeros() -> None:
    pool = KvPool([KvShape(2, 8, 8)], 4, 4, torch.float32, torch.device("cpu"))
    pages = pool.layers[0]
    pages.keys.fill_(torch.nan), pages.values.fill_(torch.nan)
    key = torch.randn(3, 2, 8)
    store(pages, torch.tensor([-1, 5, -1], dtype=torch.int32), key, 2 * key)
    assert torch.equal(torch.nonzero(~pages.key_rows.isnan().any(1)), torch.tensor([[5]]))
    assert torch.equal(pages.keys[1, 1], key[1]) and torch.equal(pages.values[1, 1], 2 * key[1])

    from gpu.attention.paged import Rows

    rows = Rows(
        starts=torch.arange(3, dtype=torch.int32),
        contexts=torch.zeros(2, dtype=torch.int32),
        tables=torch.zeros(2, 1, dtype=torch.int32),
        longest=1,
        reach=0,
    )
    out = TritonKernel(pool, programs=4).prepare(rows)(pages, torch.randn(2, 6, 8), Spec(1.0), None)
    assert torch.equal(out, torch.zeros(2, 6, 8))


@pytest.mark.parametrize("window", [0, 5])
@torch.inference_mode()
def test_keys_and_values_of_eight_bits(window: int) -> None:
    """Exactly what lies in the pages, and what is put there near to what it stands for."""
    case = Case([21, 40, 33, 2], [21, 7, 1, 1], KvShape(2, 16, 16), page=16, heads=4, stored=EIGHT_BITS)
    spec = Spec(0.25, window)
    reference = case.run_on(TorchAttention(case.pool), spec, decodes=2)
    reads = backend(case.pool)
    reads.store = lambda *_: None
    assert torch.allclose(case.run_on(reads, spec, decodes=2), reference, atol=1e-5)
    # Triton's interpreter cuts numbers off where a GPU rounds them.
    got = case.run_on(backend(case.pool), spec, decodes=2)
    assert (got - reference).norm() < 0.1 * reference.norm()
    assert (reference.double() - case.expected(spec)).norm() < 0.05 * reference.norm()
