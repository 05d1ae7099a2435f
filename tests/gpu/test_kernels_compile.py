"""Our Triton kernels compile for a GPU, and fit into its shared memory; no GPU is needed for that."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys

import pytest

pytest.importorskip(
    "triton", minversion="3.7", reason="Triton is not installed: its kernels are not compiled."
)

ROOT = pathlib.Path(__file__).resolve().parents[2]
SHARED_BYTES = 227 * 1024
"""Of a Hopper multiprocessor, for one program."""


@pytest.mark.timeout(300)
def test_every_kernel_compiles_and_fits(tmp_path: pathlib.Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.gpu.compiled"],
        cwd=ROOT,
        env=environment | {"TRITON_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    sizes = [line.split() for line in done.stdout.splitlines()]
    names = {"attend", "join", "store", "_add_norm", "_gated", "_turn_and_store"}
    names |= {"_grouped", "_choose", "_penalise", "_count", "_product"}
    assert {name for name, _ in sizes} == names and all(int(size) < SHARED_BYTES for _, size in sizes)
