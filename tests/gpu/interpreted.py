"""Triton's kernels without a GPU: its interpreter runs them on tensors of the CPU, slowly and step by step.

`tests/conftest.py` turns the interpreter on, before anything can import Triton. A module that imports this
one is skipped where Triton is not installed.
"""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton", minversion="3.7", reason="Triton is not installed: its kernels are not tested.")

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
"""Where the kernels run: as they are on a GPU, interpreted on a CPU."""
