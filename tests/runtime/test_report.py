"""The pipe between an actor and its supervisor."""

from __future__ import annotations

import os

from hypothesis import given
from hypothesis import strategies as st

from runtime.report import LINE, Failed, Progress, Ready, Reporter, Reports


def _through_pipe(*sent: Ready | Progress | Failed) -> list[Ready | Progress | Failed]:
    reader, writer = os.pipe()
    reporter = Reporter(writer)
    for report in sent:
        reporter(report)
    os.close(writer)
    with os.fdopen(reader, "rb") as file:
        return Reports().feed(file.read())


def test_reports_arrive() -> None:
    sent = (Progress("loading"), Ready(7), Failed("no"), Failed("no model", 3))
    assert _through_pipe(*sent) == list(sent)


@given(st.text(min_size=900, max_size=3000))
def test_a_long_text_still_is_one_line_that_a_pipe_takes_whole(text: str) -> None:
    reader, writer = os.pipe()
    Reporter(writer)(Failed(text))
    data = os.read(reader, 2 * LINE)
    os.close(reader)
    os.close(writer)
    assert len(data) <= LINE
    assert Reports().feed(data) == [Failed(text[:1000])]


def test_nobody_waits_for_a_supervisor_that_does_not_read() -> None:
    reader, writer = os.pipe()
    reporter = Reporter(writer)
    for _ in range(10_000):
        reporter(Progress("x" * 100))
    os.close(reader)
    reporter(Ready(1))
    os.close(writer)


@given(data=st.binary(max_size=300), cut=st.integers(0, 300))
def test_noise_is_left_out(data: bytes, cut: int) -> None:
    reports = Reports()
    noise = data.replace(b"\n", b"") + b"\n"
    found = [*reports.feed(noise[:cut]), *reports.feed(noise[cut:])]
    found += reports.feed(b'{"type":"ready","work_tick":5}\n')
    assert found[-1] == Ready(5)
