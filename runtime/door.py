"""The sockets of a company: where clients come in and where administrators do.

Both are bound before anything is started, so an address that is taken is one sentence and not a
half-started company.
"""

from __future__ import annotations

import contextlib
import errno
import os
import pathlib
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator

from protocols.config import Config
from protocols.errors import StartError
from runtime import admin, janitor

BACKLOG = 1024
"""Clients that may wait in the kernel while no frontend accepts."""


@contextlib.contextmanager
def client_door(config: Config) -> Iterator[socket.socket]:
    """The listening TCP socket. Port 0 takes a free port. Raises StartError with a sentence."""
    if not 0 <= config.port <= 65535:
        raise StartError(f"a port is a number from 0 to 65535, not {config.port}.")
    try:
        family, place = _resolve(config)
        listener = socket.create_server(place, family=family, backlog=BACKLOG)
    except (OSError, UnicodeError) as error:
        raise StartError(_refusal(config, error)) from error
    with listener:
        listener.setblocking(False)
        yield listener


def _resolve(config: Config) -> tuple[socket.AddressFamily, tuple[str, int]]:
    """Family and address to bind; IPv4 where the host has both, as clients try that everywhere."""
    flags = socket.AI_PASSIVE | socket.AI_NUMERICSERV
    found = socket.getaddrinfo(config.host or None, config.port, type=socket.SOCK_STREAM, flags=flags)
    family, _, _, _, place = min(found, key=lambda each: each[0] is not socket.AF_INET)
    return family, (str(place[0]), int(place[1]))


def _refusal(config: Config, error: Exception) -> str:
    match error:
        case socket.gaierror():
            return f"cannot find the address of host {config.host!r}: {error.strerror}."
        case OSError(errno=errno.EADDRINUSE):
            return f"port {config.port} on {config.host} is in use already; choose another with --port."
        case OSError(errno=errno.EACCES):
            return f"port {config.port} needs privileges that this user has not."
        case OSError(errno=errno.EADDRNOTAVAIL):
            return f"this machine has no address {config.host}."
        case _:
            return f"cannot listen on {config.host}:{config.port}: {error}."


@contextlib.contextmanager
def admin_door(address: str) -> Iterator[socket.socket]:
    """The listening admin socket. Raises StartError when a company lives there already.

    A socket with a path is readable by its owner alone, replaces the file that a dead company left, and
    is removed at the end, by a janitor process if this one is killed.
    """
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    with listener, contextlib.ExitStack() as stack:
        listener.setblocking(False)
        try:
            if address.startswith("@"):
                listener.bind(admin.native(address))
            else:
                _bind_path(listener, pathlib.Path(address))
                stack.enter_context(_janitor(address))
        except OSError as error:
            raise StartError(_admin_refusal(address, error)) from error
        listener.listen()
        yield listener


def _admin_refusal(address: str, error: OSError) -> str:
    company = f"company {admin.describe(address)}"
    if error.errno == errno.EADDRINUSE:
        return f"a {company} is running already; stop it, or start this one with another --name or --socket."
    return f"cannot make the admin socket of the {company}: {error.strerror or error}."


def _bind_path(listener: socket.socket, path: pathlib.Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise StartError(f"{path} exists and is not a socket.")
        if not _lives(path):
            path.unlink()
    before = os.umask(0o177)
    try:
        listener.bind(str(path))
    finally:
        os.umask(before)


def _lives(path: pathlib.Path) -> bool:
    """Whether somebody listens on the socket `path`."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            return False
    return True


@contextlib.contextmanager
def _janitor(path: str) -> Iterator[None]:
    """Remove the socket file at the end of the block; if this process is killed, a janitor does."""
    file = os.lstat(path)
    reader, writer = os.pipe2(os.O_CLOEXEC)
    try:
        process = subprocess.Popen(
            [
                sys.executable,
                "-I",
                "-S",
                janitor.__file__,
                *map(str, (reader, path, file.st_dev, file.st_ino)),
            ],
            stdin=subprocess.DEVNULL,
            pass_fds=(reader,),
            start_new_session=True,
        )
    finally:
        os.close(reader)
    try:
        yield
    finally:
        janitor.remove(path, file.st_dev, file.st_ino)
        os.close(writer)
        process.wait()
