"""Black boxes: tapes that overwrite themselves under a reader's eyes, histograms, what a death leaves."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols.errors import PeerError
from protocols.meters import ITERATION, TTFT, Count
from protocols.spans import RECORD_BYTES, SpanName, is_sampled, records
from runtime import segment
from runtime.blackbox import BlackBox, Setting, Tape


def _tape(capacity: int) -> Tape:
    return Tape(memoryview(bytearray(segment.LINE + capacity)))


@given(st.lists(st.binary(min_size=1, max_size=20), max_size=40), st.integers(0, 300))
def test_a_tape_gives_back_the_latest_bytes(pieces: list[bytes], since: int) -> None:
    tape, whole = _tape(64), b"".join(pieces)
    for piece in pieces:
        tape.append(piece)
    begin, data = tape.read(since)
    assert tape.end == len(whole)
    assert begin == min(max(since, len(whole) - 64, 0), len(whole)) or since > len(whole)
    assert whole[begin : begin + len(data)] == data
    assert begin + len(data) == len(whole) or not data


def test_a_reader_drops_what_is_overwritten_under_its_eyes() -> None:
    area = memoryview(bytearray(segment.LINE + 64))
    tape, words = Tape(area), area[: segment.LINE].cast("Q")
    tape.append(b"a" * 64)
    words[0] = 64 + 16  # the writer has announced sixteen bytes more, and was killed in the midst of them
    area[segment.LINE : segment.LINE + 16] = b"?" * 16
    assert tape.read() == (16, b"a" * 48)
    successor = Tape(area)
    successor.mend()
    successor.append(b"b" * 4)
    assert successor.read() == (20, b"a" * 44 + bytes(16) + b"b" * 4)


def test_spans_are_read_as_they_were_written() -> None:
    box = BlackBox.private()
    box.span(SpanName.PREFILL, 7, 1000, 20, 3, 1, 2, 3, 2**64 - 1)
    box.span(SpanName.STEP, 0, 5, 6)
    first, second = records(box.trace.read()[1])
    assert (first.kind, first.rid, first.start, first.end, first.items) == (
        SpanName.PREFILL,
        7,
        1000,
        1020,
        3,
    )
    assert (first.a, first.b, first.c, first.d) == (1, 2, 3, 2**64 - 1)
    assert second.kind == SpanName.STEP
    for _ in range(10_000):
        box.span(SpanName.TURN, 0, 1, 1)
    begin, data = box.trace.read()
    assert begin % RECORD_BYTES == 0 and len(records(data)) == box.trace.capacity // RECORD_BYTES


@given(st.lists(st.integers(0, 10**13), min_size=1))
def test_a_histogram_counts_every_value_once(values: list[int]) -> None:
    box = BlackBox.private()
    for value in values:
        box.observe(TTFT, value)
    counts, total = box.buckets(TTFT)
    assert total == sum(values)
    edges = (-1, *TTFT.bounds, 2**63)
    assert counts == [sum(low < v <= high for v in values) for low, high in itertools.pairwise(edges)]


def test_weights_and_counters() -> None:
    box = BlackBox.private()
    box.observe(ITERATION, 64, 5)
    assert box.buckets(ITERATION)[1] == 320
    box.count(Count.STOP, 3)
    box.count(Count.STOP)
    assert box.counted(Count.STOP) == 4


def test_sampled_is_the_lowest_bit_of_the_flags() -> None:
    assert not is_sampled("")
    for flags in range(256):
        assert is_sampled(f"00-{'1' * 32}-{'2' * 16}-{flags:02x}") == bool(flags & 1)


_WRITER = """
import sys
from protocols.spans import SpanName
from runtime.blackbox import BlackBox
box = BlackBox.attach(int(sys.argv[1]), 3)
number = 0
while True:
    number += 1
    box.span(SpanName.STEP, number, number, number, 0, number, number, number, number)
    if number == 100:
        print(flush=True)
"""


def test_a_writer_that_is_killed_leaves_whole_records() -> None:
    box = BlackBox.create()
    writer = subprocess.Popen(
        [sys.executable, "-c", _WRITER, str(box.fd)], pass_fds=(box.fd,), stdout=subprocess.PIPE
    )
    with writer:
        assert writer.stdout is not None and writer.stdout.readline()
        seen = 0
        while seen < 20_000:
            _, data = box.trace.read()
            numbers = [record.rid for record in records(data)]
            assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
            assert all(r.a == r.b == r.c == r.d == r.start == r.rid for r in records(data))
            seen = numbers[-1]
        os.kill(writer.pid, signal.SIGKILL)
    box.set(Setting.SAMPLE, 9)
    again = BlackBox.attach(os.dup(box.fd), 4)
    again.span(SpanName.TURN, 0, 1, 2)
    found = records(box.trace.read()[1])
    assert (found[-1].kind, found[-1].incarnation, found[-2].incarnation) == (SpanName.TURN, 4, 3)
    assert again.setting(Setting.SAMPLE) == 9
    box.close()
    again.close()


def test_something_else_is_no_box() -> None:
    with pytest.raises(PeerError):
        BlackBox.attach(segment.create(4096), 1)
