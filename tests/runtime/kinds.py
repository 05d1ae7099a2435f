"""Rings and doorbells come in two kinds, compiled and in Python, which must be as one to all who use them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from runtime.native import native

KINDS = ("compiled", "python")


@contextlib.contextmanager
def of_kind(kind: str) -> Iterator[None]:
    """What is made meanwhile is of that kind. Skips the test where there is no compiler."""
    with pytest.MonkeyPatch.context() as patch:
        if kind == "python":
            patch.setattr("runtime.ring.native", lambda: None)
            patch.setattr("runtime.doorbell.native", lambda: None)
        elif native() is None:
            pytest.skip("there is no compiler")
        yield


def environment(kind: str) -> dict[str, str]:
    """In which a program's rings are of that kind."""
    return {"CXX": "false"} if kind == "python" else {}
