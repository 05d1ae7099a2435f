"""One company for all attacks."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.faults.attacks.siege import OPTIONS
from tests.serving import Company, serving


@pytest.fixture(scope="package")
def company() -> Iterator[Company]:
    """A company with an exact executor and short deadlines."""
    with serving(*OPTIONS) as made:
        yield made
        assert made.stop() == 0
