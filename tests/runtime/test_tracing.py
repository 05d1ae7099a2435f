"""Log lines that never wait, and trace context as the standard wants it."""

from __future__ import annotations

import json
import pathlib
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.tracing import TraceContext, trace_fields

ROOT = pathlib.Path(__file__).resolve().parents[2]

SCRIPT = """
import logging, structlog, warnings
from runtime import tracing
log = tracing.configure({level!r}, {format!r}, actor="scheduler.0", incarnation=3)
{body}
"""


def _run(body: str, level: str = "info", log_format: str = "auto", **options: object) -> str:
    script = SCRIPT.format(level=level, format=log_format, body=body)
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
        check=True,
        **options,  # type: ignore[call-overload]
    )
    return str(done.stderr)


def test_a_line_says_who_and_when() -> None:
    line = json.loads(_run("log.info('planned', request_id='r1', step=5)"))
    assert line.pop("timestamp").endswith("Z")
    assert line == {
        "event": "planned",
        "level": "info",
        "actor": "scheduler.0",
        "incarnation": 3,
        "request_id": "r1",
        "step": 5,
    }


def test_the_level_holds() -> None:
    assert _run("log.info('a'); log.warning('b')", level="warning").count("\n") == 1


def test_every_logger_of_the_process_says_the_same() -> None:
    body = (
        "structlog.get_logger('runtime.channel').error('mail dropped')\n"
        "logging.getLogger('torch').warning('slow %s', 'kernel')\n"
        "warnings.warn('old')"
    )
    lines = [json.loads(line) for line in _run(body).splitlines()]
    assert [line["actor"] for line in lines] == ["scheduler.0"] * 3
    assert (lines[1]["event"], lines[1]["logger"], lines[1]["level"]) == ("slow kernel", "torch", "warning")
    assert "UserWarning: old" in lines[2]["event"]


def test_a_traceback_shows_no_values() -> None:
    body = (
        "def f(prompt):\n    raise ValueError('bad')\n"
        "try:\n    f('my ' + 'secret')\nexcept ValueError:\n    log.exception('crashed')"
    )
    for log_format in ("json", "console"):
        text = _run(body, log_format=log_format)
        assert "ValueError: bad" in text
        assert "my secret" not in text


def test_console_is_for_people() -> None:
    text = _run("log.info('planned', step=5)", log_format="console")
    assert "planned" in text
    assert "step=5" in text
    assert not text.startswith("{")


def test_a_full_pipe_loses_lines_and_says_how_many() -> None:
    body = (
        "import os, sys\n"
        "reader, writer = os.pipe()\n"
        "os.dup2(writer, 2)\n"
        "for i in range(5000): log.info('line', i=i)\n"
        "kept = os.read(reader, 1 << 20).splitlines()\n"
        "log.info('again')\n"
        "log.info('well')\n"
        "sys.stdout.buffer.write(b'\\n'.join([kept[-1], *os.read(reader, 4096).splitlines()]))"
    )
    script = SCRIPT.format(level="info", format="json", body=body)
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE, check=True)
    last, again, well = (json.loads(line) for line in done.stdout.splitlines())
    assert last["i"] < 4999
    assert again["lines_lost"] == 4999 - last["i"]
    assert "lines_lost" not in well


def test_a_closed_or_full_disk_is_no_reason_to_die() -> None:
    script = SCRIPT.format(level="info", format="json", body="log.info('a'); log.info('b')")
    with open("/dev/full", "w") as full:
        subprocess.run([sys.executable, "-c", script], cwd=ROOT, stderr=full, check=True)


@pytest.mark.parametrize(
    "header",
    [
        "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00",
        "cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-what-the-future-brings",
    ],
)
def test_traceparent_is_read(header: str) -> None:
    context = TraceContext.parse(header)
    assert context is not None
    assert context.trace_id == "4bf92f3577b34da6a3ce929d0e0e4736"
    assert context.span_id == "00f067aa0ba902b7"
    assert context.sampled == (header.split("-")[3] == "01")


@pytest.mark.parametrize(
    "header",
    [
        "",
        "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
        "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
        "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
        "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-extra",
        "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7",
        "00-4bf92f3577b34da6a3ce929d0e0e473-00f067aa0ba902b7-01",
    ],
)
def test_a_bad_traceparent_is_none(header: str) -> None:
    assert TraceContext.parse(header) is None


def test_a_child_stays_in_its_trace() -> None:
    root = TraceContext("4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7")
    child = root.child()
    assert child.trace_id == root.trace_id
    assert child.span_id != root.span_id
    assert TraceContext.parse(child.header()) == child
    assert trace_fields(child.header()) == {"trace_id": root.trace_id, "span_id": child.span_id}
    assert trace_fields("") == {}


@given(st.text(max_size=80))
def test_whatever_a_client_sends_is_none_or_comes_back(header: str) -> None:
    context = TraceContext.parse(header)
    assert context is None or context == TraceContext.parse(context.header())
