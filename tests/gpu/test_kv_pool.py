"""Sizes of the KV pool."""

from __future__ import annotations

import resource

import numpy as np
import pytest
import torch

from gpu import kv_pool
from gpu.cuda.memory import largest_step, pool_bytes
from gpu.kv_pool import KvPool, KvShape, choose_pages, token_bytes
from protocols.config import Config, ModelCard
from protocols.errors import StartError
from protocols.free_memory import available_memory

CPU = torch.device("cpu")
SHAPES = (KvShape(2, 16, 16), KvShape(2, 24, 8))
CARD = ModelCard("m", "/m", "LlamaForCausalLM", context=1000, vocab_size=10, eos=())


def pages(**options: int) -> int:
    """What is chosen for float32 on the CPU: 512 bytes a token, 16 tokens a page."""
    return choose_pages(Config(model=CARD, **options), SHAPES, torch.float32, CPU)


def test_bytes_of_a_token() -> None:
    assert token_bytes(SHAPES, torch.float32) == 512
    assert token_bytes(SHAPES, torch.bfloat16) == 256


def test_a_fixed_number_of_pages_wins() -> None:
    assert pages(pages=7, kv_memory=1 << 30) == 7


def test_pages_that_fit_in_the_given_memory() -> None:
    assert pages(kv_memory=1 << 20) == (1 << 20) // (16 * 512)


def test_by_default_a_share_of_what_is_available_and_never_more_than_4_gib() -> None:
    size = pages(max_running=1_000_000) * 16 * 512
    assert size <= min(4 << 30, available_memory() // 2)
    assert size >= min(4 << 30, available_memory() // 8)


def test_by_default_no_more_than_some_times_what_can_run() -> None:
    assert pages(max_running=3) == 4 * 3 * 63
    assert pages(max_running=3, kv_memory=8 << 20) == 1024


def test_a_pool_too_small_for_one_sequence_is_refused() -> None:
    with pytest.raises(StartError, match="less than the context of 1000"):
        pages(kv_memory=100_000)


def test_places_stay_within_int32() -> None:
    tiny = (KvShape(1, 1, 1),)
    config = Config(model=CARD, kv_memory=1 << 40)
    chosen = choose_pages(config, tiny, torch.bfloat16, CPU)
    assert (chosen + 1) * 16 <= 2**31 - 1
    with pytest.raises(StartError, match=r"2\*\*31"):
        KvPool(tiny, 1 << 28, 16, torch.bfloat16, CPU)


def test_memory_that_cannot_be_had() -> None:
    with pytest.raises(StartError, match="cannot allocate a KV pool"):
        KvPool((KvShape(1 << 20, 1 << 15, 1 << 15),), 1 << 10, 16, torch.float32, CPU)


def test_memory_is_reserved_but_not_touched() -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    pool = KvPool(SHAPES, 1 << 18, 16, torch.float32, CPU)
    assert pool.layers[0].keys.shape == ((1 << 18) + 1, 16, 2, 16)
    assert not pool.layers[1].value_rows[pool.zero_place :].any()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 * 1024


def test_a_share_of_the_free_memory_of_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kv_pool, "available_memory", lambda: 1 << 30)
    assert choose_pages(Config(model=CARD, memory_fraction=0.5), SHAPES, torch.float32, CPU) == 4 * 64 * 63
    few = Config(model=CARD, memory_fraction=0.05, max_running=1000)
    assert choose_pages(few, SHAPES, torch.float32, CPU) == int((1 << 30) * 0.05) // (16 * 512)


def test_a_gpus_memory_is_shared_with_weights_and_steps() -> None:
    """80 of 100 are free, 90 may be used, steps need 15: 20 are taken by the weights, 55 are left."""
    assert pool_bytes(80 << 30, 100 << 30, 0.9, 15 << 30) == pytest.approx(55 << 30, rel=1e-9)
    assert pool_bytes(10 << 30, 100 << 30, 0.9, 15 << 30) == 0


@pytest.mark.parametrize(
    ("options", "count", "share"),
    [
        ({"chunk_size": 100, "max_running": 8, "page_size": 5}, 8, 12),
        ({"chunk_size": 4, "max_running": 8, "page_size": 5}, 4, 1),
        ({"chunk_size": 9000, "max_running": 2, "page_size": 16}, 2, 1000),
    ],
)
def test_the_largest_step_fills_chunk_and_slots(options: dict[str, int], count: int, share: int) -> None:
    plan, pages = largest_step(Config(model=CARD, **options))
    assert [len(chunk.tokens) // 4 for chunk in plan.chunks] == [share] * count
    assert pages == count * -(-share // options["page_size"])
    granted = np.concatenate([np.frombuffer(grant.pages, "<i4") for grant in plan.grants])
    assert sorted(granted.tolist()) == list(range(pages)) and len(plan.opens) == count
