"""`python -m tools.bench.gpu`: is it right on this device, and how fast.

Every case is a process of its own, with a limit of time, so that none can spoil another: not by an access
to memory that is not there, behind which a process is of no more use, nor by hanging. Whatever is found is in
the JSON at once; started again with the same file, the command goes on with what is missing.
"""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from typing import Any

import click
import msgspec

from tools.bench.gpu.cases import SECTIONS, Case, chosen, rounds
from tools.bench.gpu.findings import DIED, read, sound, wrong

_SHAPES = ("smallest", "0.6b", "8b", "14b")
_LEAST = 20.0
"""Seconds that must be left for another case to begin."""


class Running:
    """The process of a case, and those that go on where one has died, each at another piece."""

    def __init__(self, case: Case, wish: dict[str, Any], limit: float) -> None:
        """limit: seconds that it may take in all."""
        self.case, self._wish, self._limit = case, msgspec.json.encode(wish).decode(), limit
        self._path = pathlib.Path(wish["findings"])
        self._started, self._pieces = time.monotonic(), -1
        self._process = self._begin()

    def look(self) -> tuple[dict[str, Any], bool]:
        """What has been found, and whether that is all."""
        code, taken = self._process.poll(), time.monotonic() - self._started
        found = read(self._path)
        if taken < self._limit:
            if code is None:
                return found, False
            pieces = len(json.dumps(found))
            if code and pieces > self._pieces:
                self._pieces, self._process = pieces, self._begin()
                return found, False
        self.end()
        if code != 0:
            found["failed"] = f"{DIED} ({code})" if code else f"it was stopped after {taken:.0f} s"
        return found | {"took_seconds": round(taken, 1)}, True

    def end(self) -> None:
        """Kill whatever is left of it."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def _begin(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-m", "tools.bench.gpu.case", self._wish],
            stdin=subprocess.DEVNULL,
            cwd=pathlib.Path(__file__).resolve().parents[3],
            start_new_session=True,
        )


class Report:
    """What all cases have found, in a file, if there is one."""

    def __init__(self, path: pathlib.Path | None, about: dict[str, Any]) -> None:
        """about: what figures depend on; those of something else are not kept."""
        self._path = path
        held = {} if path is None else read(path)
        self.found = held if held.get("about") == about else {"about": about}

    def has(self, case: Case) -> bool:
        """Whether the case has been done, and nothing of it failed or was wrong."""
        found = self.found.get(case.title)
        return isinstance(found, dict) and "took_seconds" in found and not wrong(found)

    def put(self, case: Case, found: dict[str, Any]) -> None:
        """What a case has found so far."""
        if self.found.get(case.title) == found:
            return
        self.found[case.title] = found
        if self._path is not None:
            fresh = self._path.with_name(self._path.name + ".new")
            fresh.write_text(json.dumps(self.found, indent=2) + "\n")
            fresh.replace(self._path)


@click.command()
@click.option("--device", default="auto", show_default=True, help="cuda, cuda:<index> or cpu.")
@click.option(
    "--section", "sections", multiple=True, type=click.Choice(list(SECTIONS)), help="[default: all]"
)
@click.option(
    "--shape", "shapes", multiple=True, type=click.Choice(_SHAPES), help="Instead of each section's own."
)
@click.option("--rehearse", is_flag=True, help="All of it in a moment, on any device: shows that it works.")
@click.option("--peers/--no-peers", default=True, show_default=True, help="transformers beside it.")
@click.option("--minutes", default=9.0, show_default=True, help="All is over after so many.")
@click.option(
    "--json",
    "path",
    type=click.Path(path_type=pathlib.Path),
    help="Write everything here; cases that it holds already are not done again.",
)
def gpu(
    device: str,
    sections: tuple[str, ...],
    shapes: tuple[str, ...],
    rehearse: bool,
    peers: bool,
    minutes: float,
    path: pathlib.Path | None,
) -> None:
    """A GPU: exact against transformers, then speed, budget, ablations, peers, a company served and killed.

    A case that fails is told, and the next one begins; exits with 1 when one failed or anything was wrong.
    """
    device = _device(device, rehearse)
    cases = [
        case for case in chosen(sections, shapes, rehearsal=rehearse) if peers or case.section != "peers"
    ]
    end = time.monotonic() + 60 * minutes
    report = Report(path, {"rehearsal": rehearse, "device": device})
    with tempfile.TemporaryDirectory() as folder, _orderly():
        _remember(report, pathlib.Path(folder))
        for together in rounds([case for case in cases if not report.has(case)]):
            _run(together, report, pathlib.Path(folder), end, path)
    sys.exit(1 if wrong(report.found) else 0)


@contextlib.contextmanager
def _orderly() -> Iterator[None]:
    """Whoever is asked to end, ends its processes too."""
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _device(name: str, rehearse: bool) -> str:
    from gpu.device import choose_device
    from protocols.errors import StartError

    try:
        found = choose_device(name)
    except StartError as error:
        raise click.UsageError(str(error)) from error
    if found.type != "cuda" and not rehearse:
        raise click.UsageError("there is no GPU here; --rehearse runs on a CPU.")
    return str(found)


def _remember(report: Report, folder: pathlib.Path) -> None:
    """What the machine can do was measured before."""
    held = report.found.get("machine")
    if isinstance(held, dict) and "facts" in held and not wrong(held):
        (folder / "machine.json").write_text(json.dumps(held["facts"]))


def _run(
    cases: Sequence[Case], report: Report, folder: pathlib.Path, end: float, path: pathlib.Path | None
) -> None:
    """Cases beside one another, none of them longer than it may take, nor after `end`."""
    left = end - time.monotonic()
    if left < _LEAST:
        for case in cases:
            report.put(case, report.found.get(case.title) or {"skipped": "no time was left"})
        return
    running = []
    for case in cases:
        click.echo(f"{case.title}: {left:.0f} s are left")
        wish = {
            "section": case.section,
            "of": case.of,
            "device": report.found["about"]["device"],
            "folder": str(folder),
            "findings": str(folder / f"{case.title.replace(' ', '-')}.findings"),
            "traces": "" if path is None else str(path.parent.resolve()),
            "rehearsal": report.found["about"]["rehearsal"],
        }
        # What was found before, in another run, is not done again.
        pathlib.Path(wish["findings"]).write_text(json.dumps(sound(report.found.get(case.title))))
        running.append(Running(case, wish, min(case.seconds, left)))
    try:
        while running:
            for each in tuple(running):
                found, done = each.look()
                report.put(each.case, found)
                if done:
                    running.remove(each)
                    click.echo(
                        f"{each.case.title}: {'WRONG' if wrong(found) else 'right'}, "
                        f"{found['took_seconds']} s"
                    )
            time.sleep(0.2)
    finally:
        for each in running:
            each.end()
