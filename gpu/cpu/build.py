"""Compile the kernels for this machine, once: the result is kept by the hash of everything that shapes it.

A C++ compiler is all that is needed (no headers of torch or Python). Without one the executor goes on
with torch's own operations.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import hashlib
import os
import pathlib
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator

from gpu.cpu.library import Unavailable

_SOURCES = pathlib.Path(__file__).parent / "kernels"
_MAIN = "library.cpp"
_FLAGS = (
    "-std=c++17",
    "-O3",
    "-march=native",
    "-ffp-contract=fast",
    "-fno-math-errno",
    "-fPIC",
    "-shared",
    "-pthread",
    "-w",
)
_COMPILE_SECONDS = 300.0
_SCRATCH = "compiling-"


def cache_directory() -> pathlib.Path:
    """Where compiled kernels are kept: `$TROUPE_CACHE`, or `troupe/kernels` in the user's cache."""
    chosen = os.environ.get("TROUPE_CACHE")
    if chosen:
        return pathlib.Path(chosen)
    base = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    return pathlib.Path(base) / "troupe" / "kernels"


def load(progress: Callable[[str], None], flags: tuple[str, ...] = ()) -> ctypes.CDLL:
    """The compiled kernels. `flags` come after the usual ones. Raises Unavailable."""
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        raise Unavailable("there is no C++ compiler (g++ or clang++)")
    try:
        return ctypes.CDLL(str(_compiled(compiler, (*_FLAGS, *flags), progress)))
    except OSError as error:
        raise Unavailable(f"the compiled kernels cannot be kept or loaded: {error}") from error


def _compiled(compiler: str, flags: tuple[str, ...], progress: Callable[[str], None]) -> pathlib.Path:
    directory = cache_directory()
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    target = directory / f"{_fingerprint(compiler, flags)}.so"
    if target.exists():
        return target
    with _locked(directory / "lock"):
        if not target.exists():
            progress("compiling the CPU kernels (once on this machine)")
            for left in directory.glob(f"{_SCRATCH}*"):  # by one who was killed
                shutil.rmtree(left, ignore_errors=True)
            _compile(compiler, flags, target)
    return target


def _compile(compiler: str, flags: tuple[str, ...], target: pathlib.Path) -> None:
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=_SCRATCH) as scratch:
        made = pathlib.Path(scratch) / target.name
        command = [compiler, *flags, str(_SOURCES / _MAIN), "-o", str(made)]
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


def _fingerprint(compiler: str, flags: tuple[str, ...]) -> str:
    """Of the sources, the compiler and the processor, which `-march=native` depends on."""
    digest = hashlib.sha256(repr((compiler, flags, _processor())).encode())
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        digest.update(subprocess.run([compiler, "--version"], capture_output=True, timeout=30).stdout)
    for path in sorted(_SOURCES.iterdir()):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def _processor() -> tuple[str, ...]:
    """What distinguishes this machine's processor for a compiler: its model and its flags."""
    wanted = ("vendor_id", "cpu family", "model", "model name", "flags", "Features")
    with contextlib.suppress(OSError):
        lines = pathlib.Path("/proc/cpuinfo").read_text().split("\n\n", 1)[0].splitlines()
        return tuple(line for line in lines if line.split("\t")[0].split(":")[0].strip() in wanted)
    return ()


@contextlib.contextmanager
def _locked(path: pathlib.Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
