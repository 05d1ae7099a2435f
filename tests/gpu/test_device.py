"""GPUs of the executor. Refused devices and dtypes are tested with the executor."""

from __future__ import annotations

import pytest
import torch

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
