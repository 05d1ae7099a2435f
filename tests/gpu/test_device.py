"""Threads and GPUs of the executor. Refused devices and dtypes are tested with the executor."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch

from gpu.device import choose_device, team_size, use_threads
from protocols.config import Config, ModelCard

CARD = ModelCard("m", "/m", "LlamaForCausalLM", context=10, vocab_size=10, eos=())


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    """The threads of the test run stay as they are."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def torch_threads(config: Config) -> int:
    use_threads(config)
    return torch.get_num_threads()


@pytest.mark.parametrize(("cores", "threads"), [({0}, 1), ({0, 3}, 1), ({*range(8)}, 7)])
def test_torch_leaves_a_core_to_the_other_actors_and_the_kernels_none(
    cores: set[int], threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: cores)
    assert torch_threads(Config(model=CARD)) == threads
    assert team_size(Config(model=CARD)) == len(cores)


def test_replicas_share_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {*range(8)})
    assert [torch_threads(Config(model=CARD, dp=dp)) for dp in (2, 3, 64)] == [3, 2, 1]
    assert [team_size(Config(model=CARD, dp=dp)) for dp in (2, 3, 64)] == [4, 2, 1]


@pytest.mark.parametrize(
    ("name", "devices"),
    [
        ("auto", "cuda:0 cuda:1 cuda:0"),
        ("cuda", "cuda:0 cuda:1 cuda:0"),
        ("cuda:1", "cuda:1 " * 3),
        ("cpu", "cpu " * 3),
    ],
)
def test_replicas_take_one_gpu_after_the_other(
    name: str, devices: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert [str(choose_device(name, replica)) for replica in range(3)] == devices.split()


def test_the_option_wins() -> None:
    config = Config(model=CARD, threads=3)
    assert torch_threads(config) == team_size(config) == 3
