"""The ring benchmark really moves its messages, over every form, between two processes."""

from __future__ import annotations

import pytest

from protocols.wire import encode_batch
from tools.bench import ring
from tools.bench.transports import BURST, FORMS, measure, message_of


@pytest.mark.parametrize("size", ring.SIZES.values())
def test_a_message_has_its_size(size: int) -> None:
    assert len(encode_batch((message_of(size),))) in (size, size + 1)


@pytest.mark.parametrize("form", ring.ONE_WAY)
def test_one_way(form: str) -> None:
    sample = measure(form, "sink", message_of(64), 10 * BURST)
    (nanoseconds,) = sample.nanoseconds
    assert nanoseconds > 0 and sample.cpu > 0
    assert ring.rate(sample, 10 * BURST) == 10 * BURST / nanoseconds * 1e9


@pytest.mark.parametrize("form", ring.ROUND_TRIP)
def test_round_trip(form: str) -> None:
    role = "rare" if form in ("ring", "bytes ring") else "echo"
    sample = measure(form, role, message_of(1024), 3 * BURST)
    assert len(sample.nanoseconds) == 3 * BURST and min(sample.nanoseconds) > 0
    assert ring.microseconds(sample, 0.5) <= ring.microseconds(sample, 0.99)


def test_ratios_are_taken_within_a_repetition() -> None:
    assert set(ring.ONE_WAY) | set(ring.ROUND_TRIP) == set(FORMS)
    values = {"ring": [10.0, 30.0], "zmq": [5.0, 10.0]}
    assert ring.ratios(values, (("ring", "zmq"),)) == {"ring / zmq": [2.0, 3.0]}
