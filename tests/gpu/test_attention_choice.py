"""FlashAttention and FlashInfer through stand-ins with their signatures; which backend is chosen, and why."""

from __future__ import annotations

import dataclasses
import itertools
import types
from typing import Any

import pytest
import torch
from torch import Tensor

from gpu.attention import Spec, flash
from gpu.attention.choice import Facts, choose, decide, refusal
from gpu.attention.flash import FlashKernel, Library, misfit
from gpu.attention.flashinfer_paged import FlashInferKernel
from gpu.attention.paged import PagedAttention, PagedKernel
from gpu.attention.torch_sdpa import TorchAttention
from gpu.cpu.attention import CpuAttention
from gpu.kv_pool import KvPool, KvShape, LayerPages
from protocols.config import AttentionKind, attention_kinds
from protocols.errors import StartError
from tests.gpu.attention_case import Case
from tests.gpu.test_attention import kernels

CPU = torch.device("cpu")
SHAPE = KvShape(2, 8, 8)


def ragged(
    query: Tensor, key: Tensor, value: Tensor, starts: Tensor, ends: Tensor, spec: dict[str, Any]
) -> Tensor:
    """Causal attention of ragged rows, aligned at the end; float32. spec: scale, window, softcap."""
    out = []
    for at in range(len(starts) - 1):
        q = query[starts[at] : starts[at + 1]].float()
        shared = q.shape[1] // key.shape[1]
        k, v = (x[ends[at] : ends[at + 1]].float().repeat_interleave(shared, 1) for x in (key, value))
        scores = torch.einsum("qhd,khd->hqk", q, k) * spec["scale"]
        if spec.get("softcap"):
            scores = spec["softcap"] * torch.tanh(scores / spec["softcap"])
        position = torch.arange(len(k) - len(q), len(k))[:, None]
        seen = torch.arange(len(k)) <= position
        left, right = spec["window"]
        assert right == 0
        if left >= 0:
            seen &= torch.arange(len(k)) >= position - left
        weights = scores.masked_fill(~seen, -torch.inf).softmax(-1)
        out.append(torch.einsum("hqk,khd->qhd", weights, v))
    return torch.cat(out).to(query.dtype)


def unpaged(pages: Tensor, tables: Tensor, contexts: Tensor) -> tuple[Tensor, Tensor]:
    """Ragged keys of pages, and where each sequence begins in them."""
    parts = [pages[tables[at].long()].flatten(0, 1)[:size] for at, size in enumerate(contexts.tolist())]
    ends = torch.cumsum(torch.tensor([0, *map(len, parts)]), 0)
    return torch.cat(parts), ends


def flash_attn_with_kvcache(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    *,
    cache_seqlens: Tensor,
    page_table: Tensor,
    cu_seqlens_q: Tensor,
    max_seqlen_q: int,
    softmax_scale: float,
    causal: bool,
    window_size: tuple[int, int],
    softcap: float,
) -> Tensor:
    """FlashAttention-3's."""
    assert causal and {cache_seqlens.dtype, page_table.dtype, cu_seqlens_q.dtype} == {torch.int32}
    assert max_seqlen_q == int(cu_seqlens_q.diff().max()) and q.is_contiguous()
    key, ends = unpaged(k_cache, page_table, cache_seqlens)
    value, _ = unpaged(v_cache, page_table, cache_seqlens)
    spec = {"scale": softmax_scale, "window": window_size, "softcap": softcap}
    return ragged(q, key, value, cu_seqlens_q, ends, spec)


def flash_attn_varlen_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    block_table: Tensor | None = None,
) -> Tensor:
    """FlashAttention-2's."""
    assert causal and cu_seqlens_k.dtype == cu_seqlens_q.dtype == torch.int32
    assert max_seqlen_k == int(cu_seqlens_k.diff().max())
    if block_table is not None:
        assert k.shape[1] % 256 == 0
        contexts = cu_seqlens_k.diff()
        (k, _), (v, _) = unpaged(k, block_table, contexts), unpaged(v, block_table, contexts)
    spec = {"scale": softmax_scale, "window": window_size, "softcap": softcap}
    return ragged(q, k, v, cu_seqlens_q, cu_seqlens_k, spec)


def varlen_attn(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seq_q: Tensor,
    cu_seq_k: Tensor | None,
    max_q: int,
    max_k: int,
    *,
    scale: float | None = None,
    window_size: tuple[int, int] = (-1, -1),
    enable_gqa: bool = False,
) -> Tensor:
    """torch's."""
    assert cu_seq_k is not None and enable_gqa == (query.shape[1] != key.shape[1])
    return ragged(query, key, value, cu_seq_q, cu_seq_k, {"scale": scale, "window": window_size})


STAND_INS = {
    "third": flash.third(types.SimpleNamespace(flash_attn_with_kvcache=flash_attn_with_kvcache)),
    "second": flash.second(types.SimpleNamespace(flash_attn_varlen_func=flash_attn_varlen_func)),
    "torch": flash.of_torch(varlen_attn),
}


def write(pages: LayerPages, places: Tensor, key: Tensor, value: Tensor) -> None:
    pages.key_rows.index_copy_(0, places.long(), key.flatten(1))
    pages.value_rows.index_copy_(0, places.long(), value.flatten(1))


class Wrapper:
    """FlashInfer's wrapper of a paged KV cache."""

    def __init__(self, workspace: Tensor, layout: str) -> None:
        assert workspace.dtype == torch.uint8 and layout == "NHD"

    def run(self, q: Tensor, paged_kv_cache: tuple[Tensor, Tensor]) -> Tensor:
        starts, indptr, indices, last, spec = self.planned
        page = paged_kv_cache[0].shape[1]
        assert (last >= 1).all() and (last <= page).all()
        parts = [
            [cache[indices[a:b].long()].flatten(0, 1) for a, b in itertools.pairwise(indptr)]
            for cache in paged_kv_cache
        ]
        sizes = (indptr.diff() - 1) * page + last
        key, value = (torch.cat([x[:n] for x, n in zip(each, sizes, strict=True)]) for each in parts)
        ends = torch.cumsum(torch.cat((torch.zeros(1, dtype=sizes.dtype), sizes)), 0)
        return ragged(q, key, value, starts, ends, spec)

    def _plan(self, starts: Tensor, table: tuple[Tensor, ...], sizes: tuple[int, ...], **shape: Any) -> None:
        assert {each.dtype for each in (starts, *table)} == {torch.int32}
        assert sizes == (6, 2, 8, 16) and shape["q_data_type"] is torch.float32
        spec = {"scale": shape["sm_scale"], "softcap": shape["logits_soft_cap"]}
        self.planned = starts, *table, spec | {"window": (shape["window_left"], 0)}


class Decode(Wrapper):
    def plan(self, indptr: Tensor, indices: Tensor, last: Tensor, *sizes: int, **shape: Any) -> None:
        self._plan(torch.arange(len(indptr), dtype=torch.int32), (indptr, indices, last), sizes, **shape)


class Prefill(Wrapper):
    def plan(
        self,
        qo: Tensor,
        indptr: Tensor,
        indices: Tensor,
        last: Tensor,
        *sizes: int,
        causal: bool,
        **shape: Any,
    ) -> None:
        assert causal
        self._plan(qo, (indptr, indices, last), sizes, **shape)


FLASHINFER = types.SimpleNamespace(
    BatchDecodeWithPagedKVCacheWrapper=Decode, BatchPrefillWithPagedKVCacheWrapper=Prefill
)


def check(case: Case, prefill: PagedKernel, decode: PagedKernel, spec: Spec) -> None:
    got = case.run_on(PagedAttention(case.pool, prefill, decode, write), spec, decodes=2)
    assert torch.allclose(got.double(), case.expected(spec), atol=1e-5)


@pytest.mark.parametrize("spec", [Spec(0.3), Spec(0.3, window=5)])
@pytest.mark.parametrize("name", STAND_INS)
@pytest.mark.parametrize("page", [16, 256])
@torch.inference_mode()
def test_flash_is_told_what_it_needs(name: str, page: int, spec: Spec) -> None:
    """It reads the pages where it can; elsewhere contexts are gathered, for decodes too if it must."""
    case = Case([21, 40, 33, 2], [21, 7, 1, 1], SHAPE, page=page)
    kernel = FlashKernel(case.pool, STAND_INS[name])
    assert kernel.capturable == (name == "third" or (name == "second" and page == 256))
    check(case, kernel, kernel, spec)


@torch.inference_mode()
def test_what_is_too_long_to_be_gathered_is_attended_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case([21, 40, 33, 2], [21, 7, 1, 1], SHAPE, page=16)
    unused = dataclasses.replace(STAND_INS["torch"], call=None)  # type: ignore[arg-type]
    kernel = FlashKernel(case.pool, unused, FlashKernel(case.pool, STAND_INS["third"]))
    monkeypatch.setattr(flash, "MOST_GATHERED", 30)
    check(case, kernel, kernel, Spec(0.3))


@pytest.mark.parametrize("spec", [Spec(0.3), Spec(0.3, window=5, softcap=1.5)])
@torch.inference_mode()
def test_flashinfer_is_told_what_it_needs(spec: Spec, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gpu.attention.flashinfer_paged._WORKSPACE", 16)
    case = Case([21, 40, 33, 16], [21, 7, 1, 1], SHAPE, page=16)
    kernel = FlashInferKernel(case.pool, FLASHINFER)
    check(case, kernel, kernel, spec)


@torch.inference_mode()
def test_two_kernels_share_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gpu.attention.flashinfer_paged._WORKSPACE", 16)
    case = Case([21, 40, 33, 16], [21, 7, 1, 1], SHAPE, page=16)
    prefill, decode = FlashKernel(case.pool, STAND_INS["torch"]), FlashInferKernel(case.pool, FLASHINFER)
    check(case, prefill, decode, Spec(0.3))
    assert PagedAttention(case.pool, prefill, decode, write).name == "flash,flashinfer"


@pytest.mark.parametrize("spec", [Spec(0.3, softcap=2.0), Spec(0.3)])
@torch.inference_mode()
def test_what_flash_cannot_compute_is_refused(spec: Spec) -> None:
    case = Case([5], [5], SHAPE, page=16)
    kernel = FlashKernel(case.pool, STAND_INS["torch"])
    with pytest.raises(StartError, match="cannot do the attention of this model"):
        case.run_on(PagedAttention(case.pool, kernel, kernel, write), spec, 0, sinks=not spec.softcap)


@pytest.mark.parametrize(
    ("dtype", "shape", "reason"),
    [
        (torch.bfloat16, KvShape(2, 128, 128), ""),
        (torch.float32, KvShape(2, 128, 128), "16 bits, not in float32"),
        (torch.float16, KvShape(2, 192, 128), "no heads of 192 and 128"),
        (torch.float16, KvShape(2, 512, 512), "no heads of 512"),
    ],
)
def test_pools_that_flash_serves(dtype: torch.dtype, shape: KvShape, reason: str) -> None:
    found = misfit(KvPool([shape], 1, 16, dtype, CPU))
    assert reason in found and bool(reason) == bool(found)


FACTS = Facts("FlashAttention-2", "", False, True, True, True, 16)


@pytest.mark.parametrize(
    ("change", "chosen", "reason"),
    [
        ({}, "flash,triton", "FlashAttention-2 does not read pages of 16 tokens"),
        ({"reads": True, "page_size": 256}, "flash,flash", "FlashAttention-2"),
        ({"flash": ""}, "triton,triton", "no FlashAttention"),
        ({"misfit": "too wide"}, "triton,triton", "too wide"),
        ({"plain": False}, "triton,triton", "may cap its scores"),
        ({"triton": False}, "torch,torch", "Triton is not installed"),
    ],
)
def test_the_automatic_choice(change: dict[str, Any], chosen: str, reason: str) -> None:
    decision = decide(dataclasses.replace(FACTS, **change))
    assert f"{decision.prefill},{decision.decode}" == chosen and reason in decision.reason


@pytest.mark.parametrize(
    ("kind", "decodes", "change", "sentence"),
    [
        ("flash", False, {}, ""),
        ("flash", True, {}, "does not read pages of 16 tokens for decodes: use flash,triton"),
        ("flash", True, {"reads": True}, ""),
        ("flash", False, {"flash": ""}, "FlashAttention needs a CUDA device"),
        ("flash", False, {"misfit": "too wide"}, "too wide"),
        ("triton", True, {"triton": False}, "Triton needs a CUDA device"),
        ("flashinfer", True, {"flashinfer": False}, "FlashInfer needs a CUDA device"),
        ("torch", True, {}, ""),
    ],
)
def test_choices_that_cannot_be_had(kind: str, decodes: bool, change: dict[str, Any], sentence: str) -> None:
    found = refusal(AttentionKind(kind), dataclasses.replace(FACTS, **change), decodes=decodes)
    assert sentence in found and bool(sentence) == bool(found)


def test_the_option() -> None:
    assert attention_kinds("auto") is None
    assert attention_kinds("triton") == (AttentionKind.TRITON, AttentionKind.TRITON)
    assert attention_kinds("flash,triton") == (AttentionKind.FLASH, AttentionKind.TRITON)
    for wrong in ("", "eager", "flash,", "torch,triton", "flash,triton,flash", "auto,flash"):
        with pytest.raises(StartError, match="unknown --attention-backend"):
            attention_kinds(wrong)


def test_what_a_cpu_gets(monkeypatch: pytest.MonkeyPatch) -> None:
    pool, told = KvPool([SHAPE], 1, 16, torch.float32, CPU), []
    assert isinstance(choose(pool, kernels()), CpuAttention)
    assert isinstance(choose(pool, None), TorchAttention)
    assert isinstance(choose(pool, None, "torch", tell=told.append), TorchAttention)
    assert told == ["attention: torch for prefill, torch for decodes (as asked for)"]
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    for option, sentence in (
        ("triton", "Triton needs a CUDA"),
        ("flashinfer", "FlashInfer needs"),
        ("flash", "FlashAttention needs"),
        ("nonsense", "unknown"),
    ):
        with pytest.raises(StartError, match=sentence):
            choose(pool, None, option)
    with pytest.raises(StartError, match="on a CPU, attention comes with --kernels"):
        choose(pool, kernels(), "triton")


def test_the_installed_torch_has_what_is_called() -> None:
    """The one that a GPU without further packages uses: its signature, asked of torch itself."""
    from torch.nn.attention.varlen import varlen_attn as installed

    library: Library = flash.of_torch(installed)
    assert library.pages == 0 and not library.caps
    names = set(installed.__kwdefaults__ or {}) | set(installed.__code__.co_varnames)
    assert {"cu_seq_q", "cu_seq_k", "max_q", "max_k", "scale", "window_size"} <= names
    assert flash.find() is not None
