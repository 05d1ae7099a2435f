"""Tensors from a trainer: a group of processes in which its rank 0 sends and everybody else receives.

A group is made as trainers make theirs (a TCP store, prefixes of the group's name), so that what
they call `init_custom_process_group` meets us. Everything has a deadline: a trainer that is gone is
a sentence, and never a wait.
"""

from __future__ import annotations

import contextlib
import datetime
import re
from collections.abc import Callable, Sequence
from typing import Any, BinaryIO

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import PrefixStore, TCPStore
from torch.distributed import distributed_c10d as c10d

from gpu.safetensors_file import DTYPES, header
from protocols.errors import StartError, VerbError
from protocols.weights import Group, Shape

BACKENDS = ("gloo", "nccl")
_NOTHING = 0xFF
"""Of which a NaN is made that no computation gives: where it still lies nothing has come, which Gloo does not
tell."""
_DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in DTYPES.values()}


class Groups:
    """The groups that an executor on `device` belongs to. Every call may take its time: use a thread."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._groups: dict[str, Any] = {}

    def join(self, group: Group, seconds: float) -> None:
        """Meet the others, for so long at most. StartError where that fails, VerbError where
        it cannot be tried."""
        if group.name in self._groups:
            raise VerbError("conflict", f"the group {group.name!r} is there already: destroy it first.")
        usual = "nccl" if self._device.type == "cuda" else "gloo"
        backend = group.backend or usual
        if backend not in BACKENDS or (backend == "nccl" and usual != "nccl"):
            raise VerbError("usage", f"the backend {backend!r} cannot be had here: use {usual}.")
        try:
            self._groups[group.name] = _meet(group, backend, datetime.timedelta(seconds=seconds))
        except (RuntimeError, ValueError, OSError) as error:
            raise StartError(f"the group {group.name!r} did not come together: {_reason(error)}.") from error

    def leave(self, name: str) -> bool:
        """Forget a group; whether there was one."""
        group = self._groups.pop(name, None)
        if group is not None:
            with contextlib.suppress(RuntimeError, ValueError):
                dist.destroy_process_group(group)
        return group is not None

    def receive(
        self,
        name: str,
        shapes: Sequence[Shape],
        path: str,
        seconds: float,
        progress: Callable[[str], None],
    ) -> None:
        """Take the trainer's tensors in their order, each within so long; a safetensors file of them goes to
        `path`, where there is one. StartError where that fails; the group is left then, since nobody
        knows what was sent."""
        if name not in self._groups:
            raise VerbError("not_found", f"this executor is in no group {name!r}: it must be made first.")
        tensors = [(shape.name, _dtype(shape), shape.shape) for shape in shapes]
        if len({name for name, _, _ in tensors}) < len(tensors):
            raise VerbError("usage", "a name occurs twice among the tensors.")
        with open(path or "/dev/null", "r+b") as file:
            file.write(header(tensors))
            told = -1
            for number, (_, dtype, shape) in enumerate(tensors):
                if number * 10 // len(tensors) > told:
                    told = number * 10 // len(tensors)
                    progress(f"receiving weights: {told * 10} %")
                try:
                    _write(file, self._take(name, dtype, shape, seconds))
                except (RuntimeError, ValueError) as error:
                    self.leave(name)
                    raise StartError(
                        f"tensor {shapes[number].name!r} did not come, and the group {name!r} is dissolved:"
                        f" {_reason(error)}."
                    ) from error

    def _take(self, name: str, dtype: torch.dtype, shape: tuple[int, ...], seconds: float) -> torch.Tensor:
        tensor = torch.empty(shape, dtype=dtype, device=self._device)
        _bytes(tensor).fill_(_NOTHING)
        options = dist.BroadcastOptions()
        options.rootRank, options.rootTensor = 0, 0
        options.timeout = datetime.timedelta(seconds=seconds)
        work = self._groups[name].broadcast([tensor], options)
        if not work.wait(options.timeout):
            raise RuntimeError(f"nothing was sent for {seconds:g} s")
        if dtype.is_floating_point and shape and bool((_bytes(tensor)[-dtype.itemsize :] == _NOTHING).all()):
            raise RuntimeError("fewer numbers were sent than announced")
        return tensor


def _meet(group: Group, backend: str, timeout: datetime.timedelta) -> Any:
    store = TCPStore(group.address, group.port, group.size, False, timeout, multi_tenant=True)
    prefixed = PrefixStore(group.name, store)
    made, _ = c10d._new_process_group_helper(
        group.size,
        group.rank,
        [],
        backend,
        prefixed,
        group_name=group.name,  # type: ignore[arg-type]
        timeout=timeout,
    )
    c10d._world.pg_group_ranks[made] = {rank: rank for rank in range(group.size)}
    return made


def _dtype(shape: Shape) -> torch.dtype:
    dtype = _DTYPES.get(shape.dtype.removeprefix("torch."))
    if dtype is None:
        raise VerbError("usage", f"tensor {shape.name!r} has the unknown dtype {shape.dtype!r}.")
    return dtype


def _write(file: BinaryIO, tensor: torch.Tensor) -> None:
    file.write(_bytes(tensor.cpu()).numpy().data)


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    """The memory of a tensor that is contiguous."""
    return tensor.view(-1).view(torch.uint8)


def _reason(error: Exception) -> str:
    """The first sentence of what the library says, without the place in its own source."""
    text = (str(error).strip() or type(error).__name__).splitlines()[0]
    return re.sub(r"^\[\S+:\d+\] ", "", text).split(". ")[0].rstrip(".")
