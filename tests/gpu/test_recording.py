"""What torch tells of a step, and what an executor's profile makes of it."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import pytest
import torch

from gpu.recording import TorchRecording
from protocols.errors import StartError
from protocols.orders import Activity, StartProfile

CPU = torch.device("cpu")


@pytest.mark.parametrize("more", [False, True])
def test_operations_stand_in_their_step(tmp_path: pathlib.Path, more: bool) -> None:
    path = str(tmp_path / "trace.json")
    recording = TorchRecording(StartProfile(path, 1, tuple(Activity), more, more), CPU)
    with recording.step("step 7"):
        torch.ones(3, 5) @ torch.ones(5, 2)
    recording.stop()
    torch.ones(3).cumsum(0)
    recording.save(path)
    spans: dict[str, Any] = {
        each["name"]: each
        for each in json.loads(pathlib.Path(path).read_text())["traceEvents"]
        if each["ph"] == "X"
    }
    step, product = spans["step 7"], spans["aten::mm"]
    assert step["ts"] <= product["ts"] and product["ts"] + product["dur"] <= step["ts"] + step["dur"]
    assert "aten::cumsum" not in spans
    assert (product["args"].get("Input Dims", [])[:2] == [[3, 5], [5, 2]]) is more


def test_no_gpu_is_told() -> None:
    with pytest.raises(StartError, match="there is no GPU here"):
        TorchRecording(StartProfile("", 1, (Activity.GPU,)), CPU)
