"""GPUs of the executor. Refused devices and dtypes are tested with the executor."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
import torch

from gpu.cuda.memory import await_others
from gpu.device import choose_device


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


@pytest.mark.parametrize(("free", "looks"), [([5, 5], 2), ([1, 3, 9, 9], 4), ([9, 4], 2), (range(99), 41)])
def test_memory_of_a_process_that_has_just_died_is_waited_for(
    free: Iterable[int], looks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = iter(free)
    seen: list[int] = []

    def look(_: torch.device) -> tuple[int, int]:
        seen.append(next(told))
        return seen[-1], 99

    monkeypatch.setattr(torch.cuda, "mem_get_info", look)
    await_others(torch.device("cuda"), 0)
    assert len(seen) == looks
