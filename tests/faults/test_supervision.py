"""Real companies of real processes: killed, stopped, crashing, refusing, and ended in every way."""

from __future__ import annotations

import os
import pathlib
import re
import signal
import socket
import stat
import time

import pytest

from runtime import admin
from tests import processor
from tests.faults.players import BURST
from tests.faults.stage import Stage, children_of, descriptors_of, is_alive, playing, until
from tests.patience import PATIENCE


def _shared_memory() -> set[str]:
    return set(os.listdir("/dev/shm"))


def _assert_nothing_left(stage: Stage, pids: list[int], socket_path: str = "") -> None:
    until(lambda: not any(map(is_alive, pids)), "every process gone")
    with pytest.raises(admin.Unreachable):
        stage.ask("status")
    if socket_path:
        until(lambda: not os.path.lexists(socket_path), "socket file gone")


def test_a_company_starts_works_and_ends(tmp_path: pathlib.Path) -> None:
    before = _shared_memory()
    with playing("pair", tmp_path) as stage:
        pids = stage.pids()
        stage.kill("caller.0", signal.SIGUSR2)
        caller = stage.wait_actor("caller.0", running=BURST)
        assert caller["steps_total"] == BURST
        until(lambda: _shared_memory() <= before, "nothing in /dev/shm")
        assert stage.end() == 0
        _assert_nothing_left(stage, pids)
        lines = stage.errors.splitlines()
        assert lines[0] == "starting echo.0 ..."
        assert lines[1].startswith("echo.0 ready in ")
        assert lines[2] == "starting caller.0 ..."
        assert lines[4].startswith("ready in ")
        assert lines[5] == "stopping: received SIGTERM"


def test_mail_outlives_its_reader(tmp_path: pathlib.Path) -> None:
    """What was unread when the reader was killed is answered by its next incarnation, in order."""
    with playing("patient", tmp_path) as stage:
        stage.kill("caller.0", signal.SIGUSR2)
        stage.wait_actor("caller.0", running=BURST, waiting=1)
        stage.kill("echo.0", signal.SIGSTOP)
        stage.kill("caller.0", signal.SIGUSR2)
        stage.wait_actor("caller.0", messages_out=2 * BURST)
        stage.kill("echo.0")
        caller = stage.wait_actor("caller.0", running=2 * BURST)
        assert (caller["waiting"], caller["steps_total"]) == (2, 2 * BURST)
        assert stage.actor("echo.0")["restarts"] == 1


def test_every_actor_may_be_killed_again_and_again(tmp_path: pathlib.Path) -> None:
    """More often than any budget allows, idle as they are: nobody is to blame for a SIGKILL."""
    with playing("pair", tmp_path) as stage:
        supervisor = stage.process.pid
        descriptors = descriptors_of(supervisor)
        for i in range(2, 6):
            for name in ("echo.0", "caller.0"):
                pid = stage.kill(name)
                stage.wait_actor(name, incarnation=i, state="ready")
                assert not is_alive(pid)
        stage.kill("caller.0", signal.SIGUSR2)
        stage.wait_actor("caller.0", running=BURST)
        until(lambda: descriptors_of(supervisor) <= descriptors, "no descriptor leaked")
        assert "Z" not in children_of(supervisor).values()
        assert stage.end() == 0


def test_an_actor_starts_in_a_moment(tmp_path: pathlib.Path) -> None:
    """Processor time until it is ready, which other processes on the machine do not change much."""
    seconds = []
    with playing("pair", tmp_path) as stage:
        for incarnation in (2, 3, 4):
            stage.kill("echo.0")
            pid = stage.wait_actor("echo.0", incarnation=incarnation, state="ready")["pid"]
            seconds.append(processor.seconds(pid))
    assert min(seconds) < 2.0


def test_killed_before_it_is_ready_again_and_again(tmp_path: pathlib.Path) -> None:
    with playing("pair", tmp_path) as stage:
        for incarnation in range(1, 8):
            stage.wait_actor("echo.0", incarnation=incarnation)
            until(lambda: stage.actor("echo.0")["pid"], "a process")
            stage.kill("echo.0")
        stage.wait_actor("echo.0", incarnation=8, state="ready")


def test_a_stopped_actor_is_killed_before_it_is_replaced(tmp_path: pathlib.Path) -> None:
    with playing("pair", tmp_path) as stage:
        pid = stage.kill("echo.0", signal.SIGSTOP)
        stage.wait_actor("echo.0", incarnation=2, state="ready")
        assert not is_alive(pid)
        assert re.search(r"echo\.0 made no turn of its loop for [23]\.", stage.errors)
        stage.kill("caller.0", signal.SIGUSR2)
        stage.wait_actor("caller.0", running=BURST, waiting=2)


def test_a_kill_from_outside_is_told_apart_from_a_death_of_its_own(tmp_path: pathlib.Path) -> None:
    """By the row: so a request that kills its executor is told from one that was only there."""
    with playing("pair", tmp_path) as stage:
        for incarnation, number, excused in (
            (2, signal.SIGKILL, 1),
            (3, signal.SIGABRT, 1),
            (4, signal.SIGKILL, 2),
        ):
            stage.kill("echo.0", number)
            echo = stage.wait_actor("echo.0", incarnation=incarnation, state="ready")
            assert echo["open_requests"] == excused


def test_a_short_stop_is_forgiven(tmp_path: pathlib.Path) -> None:
    with playing("pair", tmp_path) as stage:
        pid = stage.kill("echo.0", signal.SIGSTOP)
        os.kill(pid, signal.SIGCONT)
        stage.kill("caller.0", signal.SIGUSR2)
        assert stage.wait_actor("caller.0", running=BURST)["waiting"] == 1


def test_one_for_all(tmp_path: pathlib.Path) -> None:
    with playing("all", tmp_path) as stage:
        stage.kill("caller.0")
        stage.wait_actor("echo.0", incarnation=2, state="ready")
        stage.wait_actor("caller.0", incarnation=2, state="ready")
        stage.kill("caller.0", signal.SIGUSR2)
        stage.wait_actor("caller.0", running=BURST, waiting=2)


def test_a_blocked_loop_is_a_hang(tmp_path: pathlib.Path) -> None:
    with playing("spinner", tmp_path) as stage:
        stage.wait_actor("spinner.0", incarnation=3)
        assert "spinner.0 made no turn of its loop" in stage.errors


def test_announced_work_is_no_hang_until_it_lasts_too_long(tmp_path: pathlib.Path) -> None:
    with playing("thinker", tmp_path) as stage:
        assert stage.wait_actor("thinker.0", work_tick=1)["incarnation"] == 1
        stage.wait_actor("thinker.0", incarnation=2)
        assert re.search(r"thinker\.0 was busy with one piece of work for [67]\.", stage.errors)


def test_a_crash_loop_ends_the_company(tmp_path: pathlib.Path) -> None:
    with playing("crasher", tmp_path, ready=False) as stage:
        assert stage.process.wait(PATIENCE) == 1
        assert stage.errors.splitlines()[-1] == (
            "crasher.0 died again without having got any work done, and company allows 2 such deaths within "
            "60 s; the last time it failed with RuntimeError: a bug."
        )
        assert stage.errors.count('"event": "actor crashed"') == 3
        assert "in crasher" in stage.errors, "the traceback"


def test_a_refusal_is_one_sentence_and_its_exit_code(tmp_path: pathlib.Path) -> None:
    with playing("refuser", tmp_path, ready=False) as stage:
        assert stage.process.wait(PATIENCE) == 3
        assert stage.errors.splitlines()[-1] == "there is no model in /nowhere."
        assert "Traceback" not in stage.errors
        assert stage.errors.count("starting refuser.0") == 1


def test_a_crash_before_ready_ends_the_first_start(tmp_path: pathlib.Path) -> None:
    with playing("loader", tmp_path, ready=False) as stage:
        assert stage.process.wait(PATIENCE) == 1
        assert "loader.0: loading weights 40%" in stage.errors.splitlines()
        assert stage.errors.splitlines()[-1] == (
            "loader.0 could not start: it failed with ValueError: bad weights."
        )


def test_an_entry_that_is_not_there(tmp_path: pathlib.Path) -> None:
    with playing("nameless", tmp_path, ready=False) as stage:
        assert stage.process.wait(PATIENCE) == 1
        assert stage.errors.splitlines()[-1] == (
            "ghost.0 could not start: it failed with ModuleNotFoundError: "
            "No module named 'tests.faults.no_such_module'."
        )


def test_never_ready(tmp_path: pathlib.Path) -> None:
    with playing("sluggish", tmp_path, ready=False) as stage:
        assert stage.process.wait(PATIENCE) == 1
        assert stage.errors.splitlines()[-1] == (
            "sluggish.0 could not start: it was not ready after 1 s, so it was killed."
        )


def test_who_does_not_stop_is_killed(tmp_path: pathlib.Path) -> None:
    with playing("stubborn", tmp_path) as stage:
        pids = stage.pids()
        began = time.monotonic()
        assert stage.end() == 0
        assert time.monotonic() - began > 1.0
        _assert_nothing_left(stage, pids)


def test_a_second_signal_ends_at_once(tmp_path: pathlib.Path) -> None:
    with playing("host", tmp_path, drain=60.0) as stage:
        pids = stage.pids()
        stage.kill("host.0", signal.SIGSTOP)
        stage.process.send_signal(signal.SIGINT)
        until(lambda: stage.status()["state"] == "stopping", "stopping")  # type: ignore[index]
        assert stage.end(signal.SIGTERM) == 143
        _assert_nothing_left(stage, pids)


def test_an_echo_of_the_first_signal_is_no_second_one(tmp_path: pathlib.Path) -> None:
    with playing("host", tmp_path) as stage:
        stage.process.send_signal(signal.SIGTERM)
        stage.process.send_signal(signal.SIGTERM)
        assert stage.process.wait(PATIENCE) == 0


def test_nothing_outlives_a_killed_supervisor(tmp_path: pathlib.Path) -> None:
    path = str(tmp_path / "admin.sock")
    before = _shared_memory()
    with playing("pair", tmp_path, socket=path) as stage:
        pids = stage.pids()
        os.kill(pids[0], signal.SIGSTOP)
        stage.process.kill()
        stage.process.wait()
        _assert_nothing_left(stage, pids, path)
        until(lambda: _shared_memory() <= before, "nothing in /dev/shm")
        until(lambda: not _janitors(path), "the janitor has gone home")


def _janitors(path: str) -> list[int]:
    """Processes that have the path of the socket among their arguments."""
    found = []
    for file in pathlib.Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if path.encode() in file.read_bytes().split(b"\0") and b"janitor" in file.read_bytes():
                found.append(int(file.parent.name))
        except OSError:
            continue
    return found


def test_what_an_actor_has_started_dies_with_it(tmp_path: pathlib.Path) -> None:
    with playing("parent", tmp_path) as stage:
        grandchild = stage.actor("parent.0")["running"]
        assert is_alive(grandchild)
        stage.kill("parent.0")
        until(lambda: not is_alive(grandchild), "grandchild gone")


def test_a_frontend_that_dies_refuses_nobody(tmp_path: pathlib.Path) -> None:
    """The supervisor holds the listening socket: whoever comes meanwhile waits for the next incarnation."""
    with playing("host", tmp_path) as stage:
        status = stage.status()
        assert status is not None
        place = (status["host"], status["port"])
        assert place[1] > 0
        with socket.create_connection(place) as first:
            assert first.recv(10) == b"1"
        stage.kill("host.0", signal.SIGSTOP)
        stage.kill("host.0")
        with socket.create_connection(place) as second:
            second.settimeout(PATIENCE)
            assert second.recv(10) == b"2"


def test_a_busy_port_is_refused_before_anything_starts(tmp_path: pathlib.Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with playing("host", tmp_path, ready=False, port=port) as stage:
            assert stage.process.wait(PATIENCE) == 1
            assert stage.errors == (
                f"port {port} on 127.0.0.1 is in use already; choose another with --port.\n"
            )


def test_a_frontend_has_the_drain_time(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drained = tmp_path / "drained"
    monkeypatch.setenv("DRAIN", str(drained))
    with playing("host", tmp_path, drain=PATIENCE) as stage:
        stage.process.send_signal(signal.SIGTERM)
        stage.wait_actor("host.0", state="draining")
        assert stage.actor("echo.0")["state"] == "ready", "the stages below still work"
        stage.kill("echo.0")
        stage.wait_actor("echo.0", state="ready", incarnation=2)
        drained.touch()
        assert stage.process.wait(PATIENCE) == 0


def test_the_socket_file_is_private_and_goes_with_the_company(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "admin.sock"
    with playing("pair", tmp_path, socket=str(path)) as stage:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        with playing("pair", tmp_path, ready=False, socket=str(path)) as second:
            assert second.process.wait(PATIENCE) == 1
            assert f"a company at {path} is running already" in second.errors
        assert stage.status() is not None
        assert stage.end() == 0
        assert not path.exists()
        assert not _janitors(str(path))


def test_a_stale_socket_file_is_replaced(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "admin.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    with playing("pair", tmp_path, socket=str(path)) as stage:
        assert stage.end() == 0


def test_another_file_is_not(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "precious.txt"
    path.write_text("mine")
    with playing("pair", tmp_path, ready=False, socket=str(path)) as stage:
        assert stage.process.wait(PATIENCE) == 1
        assert stage.errors == f"{path} exists and is not a socket.\n"
    assert path.read_text() == "mine"


def test_what_administrators_may_ask(tmp_path: pathlib.Path) -> None:
    with playing("pair", tmp_path) as stage:
        tree = stage.ask("tree")["tree"]
        assert (tree["strategy"], tree["budget"]) == ("one_for_one", {"restarts": 5, "seconds": 60.0})
        assert [child["name"] for child in tree["children"]] == ["echo.0", "caller.0"]
        assert stage.ask("actor.kill", name="echo.0")["incarnation"] == 1
        stage.wait_actor("echo.0", incarnation=2, state="ready")
        stage.ask("actor.restart", name="echo.0")
        stage.wait_actor("echo.0", incarnation=3, state="ready")
        with pytest.raises(admin.VerbError, match="there is no actor 'nobody'") as refusal:
            stage.ask("actor.kill", name="nobody")
        assert refusal.value.code == "not_found"
        with pytest.raises(admin.VerbError, match="there is no verb 'dance'"):
            stage.ask("dance")
        assert stage.ask("stop")["state"] == "stopping"
        assert stage.process.wait(PATIENCE) == 0


def test_an_idle_company_costs_nothing(tmp_path: pathlib.Path) -> None:
    with playing("pair", tmp_path) as stage:
        assert processor.least_share([stage.process.pid, *stage.pids()], 0.05) < 0.05
