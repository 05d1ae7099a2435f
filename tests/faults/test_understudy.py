"""Understudies: they make restarts fast, and are in nobody's way when something happens to them."""

from __future__ import annotations

import contextlib
import os
import pathlib
import signal

from tests.faults.players import BURST
from tests.faults.stage import Stage, children_of, descriptors_of, is_alive, playing, state_of, until


def _understudy(stage: Stage) -> int:
    """Process id of the understudy once it waits for a part."""

    def find() -> int | None:
        for pid in children_of(stage.process.pid):
            with contextlib.suppress(OSError):
                if pathlib.Path(f"/proc/{pid}/comm").read_text().startswith("understudy"):
                    return pid
        return None

    return until(find, "an understudy")


def test_an_understudy_takes_over_in_a_moment(tmp_path: pathlib.Path) -> None:
    with playing("spared", tmp_path) as stage:
        first = stage.actor("echo.0")["pid"]
        held = descriptors_of(first)
        spare = _understudy(stage)
        stage.kill("echo.0")
        actor = stage.wait_actor("echo.0", incarnation=2, state="ready")
        assert actor["pid"] == spare, "no new process was started"
        assert pathlib.Path(f"/proc/{spare}/comm").read_text() == "echo.0\n"
        assert descriptors_of(spare) <= held, "what belongs to other parts was let go"
        stage.kill("caller.0", signal.SIGUSR2)
        stage.wait_actor("caller.0", running=BURST, waiting=2)
        assert _understudy(stage) != spare, "there is another one"
        assert stage.end() == 0


def test_who_starts_later_is_prepared_meanwhile(tmp_path: pathlib.Path) -> None:
    with playing("prepared", tmp_path) as stage:
        caller = stage.actor("caller.0")
        assert caller["incarnation"] == 1
        command = pathlib.Path(f"/proc/{caller['pid']}/cmdline").read_text()
        assert command.split("\0")[-2].startswith("understudy"), "it was an understudy first"
        stage.kill("caller.0", signal.SIGUSR2)
        stage.wait_actor("caller.0", running=BURST)
        assert _understudy(stage) != caller["pid"], "there is another one"
        assert stage.end() == 0


def test_two_deaths_at_once(tmp_path: pathlib.Path) -> None:
    with playing("spared", tmp_path) as stage:
        _understudy(stage)
        stage.kill("echo.0")
        stage.kill("caller.0")
        stage.wait_actor("echo.0", incarnation=2, state="ready")
        stage.wait_actor("caller.0", incarnation=2, state="ready")


def test_a_dead_or_stopped_understudy_is_passed_over(tmp_path: pathlib.Path) -> None:
    with playing("spared", tmp_path) as stage:
        spare = _understudy(stage)
        os.kill(spare, signal.SIGKILL)
        until(lambda: not is_alive(spare), "understudy gone")
        stage.kill("echo.0")
        stage.wait_actor("echo.0", incarnation=2, state="ready")
        stopped = _understudy(stage)
        os.kill(stopped, signal.SIGSTOP)
        until(lambda: state_of(stopped) == "T", "understudy stopped")
        stage.kill("echo.0")
        stage.wait_actor("echo.0", incarnation=3, state="ready")
        assert not is_alive(stopped)
        assert "Z" not in children_of(stage.process.pid).values()


def test_an_understudy_dies_with_its_supervisor(tmp_path: pathlib.Path) -> None:
    with playing("spared", tmp_path) as stage:
        spare = _understudy(stage)
        stage.process.kill()
        stage.process.wait()
        until(lambda: not is_alive(spare), "understudy gone")
