"""Compile C++ for this machine, once: the result is kept under the hash of everything that shapes it.

A compiler is all that is needed. Who has none goes on without what it would have made.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import pathlib
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Iterator

_COMPILE_SECONDS = 300.0
_SCRATCH = "compiling-"


class Unavailable(Exception):
    """There is no native code on this machine; the message says why."""


def cache_directory() -> pathlib.Path:
    """Where compiled code is kept: `$TROUPE_CACHE`, or `troupe/kernels` in the user's cache."""
    chosen = os.environ.get("TROUPE_CACHE")
    if chosen:
        return pathlib.Path(chosen)
    base = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    return pathlib.Path(base) / "troupe" / "kernels"


def find_compiler() -> str:
    """`$CXX`, or the first that there is. Raises Unavailable."""
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        raise Unavailable("there is no C++ compiler (g++ or clang++)")
    return compiler


def fingerprint(sources: Iterable[pathlib.Path], *more: object) -> str:
    """A name for what is made of the files' contents and `more`."""
    digest = hashlib.sha256(repr(more).encode())
    for path in sources:
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def compiled(
    name: str, compiler: str, flags: Iterable[str], main: pathlib.Path, progress: Callable[[], None]
) -> pathlib.Path:
    """The shared object `name`, made of `main` unless it is there already; `progress` is called before
    it is made. Raises Unavailable where it cannot be made, OSError where it cannot be kept."""
    directory = cache_directory()
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    target = directory / f"{name}.so"
    if target.exists():
        return target
    with locked(directory / "lock"):
        if not target.exists():
            progress()
            for left in directory.glob(f"{_SCRATCH}*"):  # by one who was killed
                shutil.rmtree(left, ignore_errors=True)
            _compile(compiler, flags, main, target)
    return target


def _compile(compiler: str, flags: Iterable[str], main: pathlib.Path, target: pathlib.Path) -> None:
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=_SCRATCH) as scratch:
        made = pathlib.Path(scratch) / target.name
        command = [compiler, *flags, str(main), "-o", str(made)]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=_COMPILE_SECONDS, check=False
            )
        except subprocess.TimeoutExpired as error:
            raise Unavailable(f"{compiler} took more than {_COMPILE_SECONDS:g} s") from error
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or ["no message"])[0]
            raise Unavailable(f"{compiler} failed: {reason}")
        os.replace(made, target)


@contextlib.contextmanager
def locked(path: pathlib.Path) -> Iterator[None]:
    """One process at a time, of all that lock the file."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
