"""Work in a thread ends with what it accompanies, and hides no failure."""

from __future__ import annotations

import threading

import pytest

from tools.background import background


def test_it_works_meanwhile_and_is_told_to_end() -> None:
    began, ended = threading.Event(), threading.Event()

    def work(over: threading.Event) -> None:
        began.set()
        over.wait()
        ended.set()

    with background(work):
        began.wait()
        assert not ended.is_set()
    assert ended.is_set()


def test_what_it_raises_is_raised_at_the_end() -> None:
    with pytest.raises(ValueError, match="of the work's own"), background(_fails):
        pass


def test_what_is_raised_meanwhile_goes_first() -> None:
    with pytest.raises(KeyError), background(_fails):
        raise KeyError


def _fails(_over: threading.Event) -> None:
    raise ValueError("of the work's own")
