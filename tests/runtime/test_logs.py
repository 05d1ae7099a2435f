"""Log lines that never wait, on stderr and on a tape."""

from __future__ import annotations

import json
import pathlib
import subprocess
import sys

from runtime import logs
from runtime.blackbox import BlackBox

ROOT = pathlib.Path(__file__).resolve().parents[2]

SCRIPT = """
import logging, structlog, warnings
from runtime import logs
from runtime.blackbox import BlackBox, Setting
box = BlackBox.private()
log = logs.configure({level!r}, {format!r}, actor="scheduler.0", incarnation=3, box=box)
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


def test_the_level_changes_while_it_runs() -> None:
    body = (
        "log.info('a'); log.debug('b')\n"
        "box.set(Setting.LEVEL, 10); log.debug('c')\n"
        "box.set(Setting.LEVEL, 40); log.warning('d'); log.exception('e')\n"
        "box.set(Setting.LEVEL, 0); log.info('f')"
    )
    assert [json.loads(line)["event"] for line in _run(body).splitlines()] == ["a", "c", "e", "f"]


def test_the_tape_has_every_line_as_json() -> None:
    body = (
        "import os\n"
        "log.info('planned', step=5)\n"
        "try:\n    1 / 0\nexcept ZeroDivisionError:\n    log.exception('crashed', long='x' * 20000)\n"
        "os.write(2, b'---' + box.log.read()[1])"
    )
    first, second = map(json.loads, _run(body, log_format="console").split("---")[1].splitlines())
    assert (first["event"], first["step"], first["actor"]) == ("planned", 5, "scheduler.0")
    assert "ZeroDivisionError" in second["exception"]
    assert len(second["long"]) < 2000


def test_notices_are_taped_alone() -> None:
    box = BlackBox.private()
    logs.taped("supervisor", box).warning("actor lost", name="executor.0")
    line = json.loads(box.log.read()[1])
    assert (line["event"], line["level"], line["name"]) == ("actor lost", "warning", "executor.0")
