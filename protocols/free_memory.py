"""How much memory this machine still has to give."""

from __future__ import annotations

import pathlib


def available_memory() -> int:
    """Bytes of host memory that can be had: what the kernel calls available, within the cgroup's limit."""
    lines = pathlib.Path("/proc/meminfo").read_text().splitlines()
    available = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    limit, used = (_cgroup(name) for name in ("memory.max", "memory.current"))
    return available if limit is None or used is None else max(0, min(available, limit - used))


def _cgroup(name: str) -> int | None:
    try:
        return int((pathlib.Path("/sys/fs/cgroup") / name).read_text())
    except (OSError, ValueError):
        return None
