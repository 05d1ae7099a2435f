"""Torch computes these tests' small tensors with one thread: handing them out takes longer than they do."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture(autouse=True)
def one_torch_thread() -> None:
    """Also behind a test whose executor took as many as its machine has."""
    torch.set_num_threads(1)
