"""What the tests of both pages share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.browser import Tab, browser


@pytest.fixture(scope="module")
def window() -> Iterator[Tab]:
    """A browser for the tests of a module."""
    with browser() as opened:
        yield opened
