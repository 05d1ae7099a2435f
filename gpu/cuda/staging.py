"""What the host knows of a step, on its way to the device: one copy, beside what the device is computing."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

_ALIGNMENT = 16
_DTYPES = {
    np.dtype(np.uint8): torch.uint8,
    np.dtype(np.int32): torch.int32,
    np.dtype(np.int64): torch.int64,
    np.dtype(np.float32): torch.float32,
    np.dtype(np.float64): torch.float64,
}


class Staging:
    """Copies to one device. On a GPU the host's side is pinned memory, which torch keeps until the copy has
    been made, and the copy runs in a stream of its own, so that it does not wait for the step before."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def upload(self, *arrays: npt.NDArray[np.generic]) -> list[Tensor]:
        """The arrays on the device, in one copy; the current stream waits for it, the host does not."""
        places, size = [], 0
        for array in arrays:
            places.append(size)
            size += -(-array.nbytes // _ALIGNMENT) * _ALIGNMENT
        host = torch.empty(size, dtype=torch.uint8, pin_memory=self._stream is not None)
        staged = host.numpy()
        for array, place in zip(arrays, places, strict=True):
            staged[place : place + array.nbytes] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        device = self._copied(host)
        return [
            device[place : place + array.nbytes].view(_DTYPES[array.dtype]).view(array.shape)
            for array, place in zip(arrays, places, strict=True)
        ]

    def _copied(self, host: Tensor) -> Tensor:
        if self._stream is None:
            return host
        with torch.cuda.stream(self._stream):
            device = host.to(self._device, non_blocking=True)
        current = torch.cuda.current_stream(self._device)
        current.wait_stream(self._stream)
        device.record_stream(current)
        return device


def to_device(values: npt.NDArray[np.generic], device: torch.device) -> Tensor:
    """One array on the device; the host waits for nothing."""
    host = torch.from_numpy(values)
    return host.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else host
