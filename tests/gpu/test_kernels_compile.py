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


pytestmark = pytest.mark.timeout(300)

KERNELS = {"attend", "join", "store", "_add_norm", "_gated", "_turn_and_store", "_grouped", "_choose"}
KERNELS |= {"_penalise", "_count", "_product"}


def test_whatever_an_executor_launches_compiles_fits_and_did_so_before_it_was_ready(
    tmp_path: pathlib.Path,
) -> None:
    """A compilation in the midst of serving would be a pause of everybody."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.gpu.launched"],
        cwd=ROOT,
        env=environment | {"TRITON_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    compilations = [line.split() for line in done.stdout.splitlines()]
    assert {name for _, name, _ in compilations} == KERNELS
    assert all(when == "ready" and int(size) < SHARED_BYTES for when, _, size in compilations)
