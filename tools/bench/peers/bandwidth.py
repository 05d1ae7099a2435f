"""How fast this machine reads memory: `python -m tools.bench.peers.bandwidth THREADS` prints GB/s.

The best of a few passes over 1 GiB with torch's own kernels, a sum and a matrix-vector product: the most that
decoding one sequence, which reads every weight once a token, could reach.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable

_BYTES = 1 << 30
_WIDTH = 4096
_PASSES = 5


def measured(threads: int) -> float:
    """GB/s, by a process of its own."""
    command = [sys.executable, "-m", "tools.bench.peers.bandwidth", str(threads)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def here(threads: int, size: int = _BYTES) -> float:
    """GB/s of `threads` threads reading `size` bytes."""
    import torch

    torch.set_num_threads(threads)
    matrix = torch.ones(size // 4 // _WIDTH, _WIDTH)
    vector = torch.ones(_WIDTH)
    best = 0.0
    kernels: list[Callable[[], torch.Tensor]] = [matrix.sum, lambda: matrix @ vector]
    for kernel in kernels:
        for _ in range(_PASSES):
            start = time.perf_counter()
            kernel()
            best = max(best, size / (time.perf_counter() - start) / 1e9)
    return best


if __name__ == "__main__":
    print(here(int(sys.argv[1])))
