"""The company's sockets, and sentences for every reason not to have them."""

from __future__ import annotations

import os
import pathlib
import socket
import subprocess
import sys

import pytest

from protocols.errors import StartError
from runtime import janitor
from runtime.door import admin_door, client_door
from tests.faults.players import config
from tests.patience import PATIENCE


def test_a_free_port_is_found() -> None:
    with client_door(config("x", port=0)) as door:
        host, port = door.getsockname()
        assert host == "127.0.0.1"
        assert port > 0
        assert not door.getblocking()
        with socket.create_connection((host, port)):
            pass


def test_names_are_resolved_and_ipv4_comes_first() -> None:
    with client_door(config("x", host="localhost", port=0)) as door:
        assert door.family is socket.AF_INET


@pytest.mark.parametrize(
    ("host", "port", "sentence"),
    [
        ("no-such-host.invalid", 0, "cannot find the address of host 'no-such-host.invalid'"),
        ("192.0.2.1", 0, "this machine has no address 192.0.2.1"),
        ("127.0.0.1", 70000, "a port is a number from 0 to 65535, not 70000"),
    ],
)
def test_what_cannot_be(host: str, port: int, sentence: str) -> None:
    with pytest.raises(StartError, match=sentence), client_door(config("x", host=host, port=port)):
        pass


def test_a_taken_port() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(StartError, match="in use already"), client_door(config("x", port=port)):
            pass


def test_the_same_port_again_at_once() -> None:
    """A connection in TIME_WAIT does not keep a company from coming back."""
    with client_door(config("x", port=0)) as door:
        place = door.getsockname()
        with socket.create_connection(place) as client:
            door.setblocking(True)
            accepted, _ = door.accept()
            accepted.close()
            client.recv(1)
    with client_door(config("x", port=place[1])):
        pass


def _enter(address: str) -> None:
    with admin_door(address):
        pass


def test_the_admin_door_takes_one_company(tmp_path: pathlib.Path) -> None:
    for address in (f"@troupe-test-{os.getpid()}", str(tmp_path / "a.sock")):
        with admin_door(address), pytest.raises(StartError, match="is running already"):
            _enter(address)
        _enter(address)
    assert list(tmp_path.iterdir()) == []


def test_no_such_directory(tmp_path: pathlib.Path) -> None:
    with (
        pytest.raises(StartError, match=r"cannot make the admin socket .*: No such file"),
        admin_door(str(tmp_path / "none" / "a.sock")),
    ):
        pass


def test_too_long_a_path(tmp_path: pathlib.Path) -> None:
    with pytest.raises(StartError, match="cannot make the admin socket"), admin_door("/tmp/" + "x" * 200):
        pass


def test_the_umask_is_as_before(tmp_path: pathlib.Path) -> None:
    before = os.umask(0o022)
    try:
        with admin_door(str(tmp_path / "a.sock")):
            assert os.umask(0o022) == 0o022
    finally:
        os.umask(before)


def test_the_janitor_leaves_another_companys_file(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "a.sock"
    path.write_text("")
    old = path.stat()
    reader, writer = os.pipe()
    arguments = [str(each) for each in (reader, path, old.st_dev, old.st_ino + 1)]
    with subprocess.Popen([sys.executable, janitor.__file__, *arguments], pass_fds=(reader,)) as process:
        os.close(reader)
        os.close(writer)
        assert process.wait(PATIENCE) == 0
    assert path.exists()
    janitor.remove(str(path), old.st_dev, old.st_ino)
    assert not path.exists()
    janitor.remove(str(path), old.st_dev, old.st_ino)
