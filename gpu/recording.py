"""What torch does while a model computes, as a Chrome trace."""

from __future__ import annotations

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from protocols.errors import StartError
from protocols.orders import Activity, StartProfile


class TorchRecording:
    """Of what this thread does from now on, and of what the device does, until `stop`."""

    def __init__(self, wish: StartProfile, device: torch.device) -> None:
        """StartError where nothing of what is wished for is here."""
        here = {Activity.CPU: ProfilerActivity.CPU}
        if device.type == "cuda":
            here[Activity.GPU] = ProfilerActivity.CUDA
        activities = [here[each] for each in wish.activities if each in here]
        if not activities:
            raise StartError("there is no GPU here to profile.")
        self._profile = profile(activities=activities, with_stack=wish.stacks, record_shapes=wish.shapes)
        self._profile.start()

    def step(self, name: str) -> record_function:
        """Around a launch: a span of its own."""
        return record_function(name)

    def stop(self) -> None:
        """Record no more, once the device has done what was launched. In the thread that began it."""
        self._profile.stop()

    def save(self, path: str) -> None:
        """Write the trace. OSError or RuntimeError where that fails."""
        self._profile.export_chrome_trace(path)
