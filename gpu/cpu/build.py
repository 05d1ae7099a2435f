"""Compile the kernels for this machine, once (`protocols.compiling`).

A C++ compiler is all that is needed (no headers of torch or Python). Without one the executor goes on
with torch's own operations.
"""

from __future__ import annotations

import contextlib
import ctypes
import pathlib
import subprocess
from collections.abc import Callable

from protocols.compiling import Unavailable, compiled, find_compiler, fingerprint

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


def load(progress: Callable[[str], None], flags: tuple[str, ...] = ()) -> ctypes.CDLL:
    """The compiled kernels. `flags` come after the usual ones. Raises Unavailable."""
    compiler = find_compiler()
    flags = (*_FLAGS, *flags)
    try:
        name = fingerprint(sorted(_SOURCES.iterdir()), compiler, _version(compiler), flags, _processor())
        made = compiled(
            name,
            compiler,
            flags,
            _SOURCES / _MAIN,
            lambda: progress("compiling the CPU kernels (once on this machine)"),
        )
        return ctypes.CDLL(str(made))
    except OSError as error:
        raise Unavailable(f"the compiled kernels cannot be kept or loaded: {error}") from error


def _version(compiler: str) -> bytes:
    """What the compiler says of itself."""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        return subprocess.run([compiler, "--version"], capture_output=True, timeout=30).stdout
    return b""


def _processor() -> tuple[str, ...]:
    """What distinguishes this machine's processor for a compiler, with `-march=native`: its model and its
    flags."""
    wanted = ("vendor_id", "cpu family", "model", "model name", "flags", "Features")
    with contextlib.suppress(OSError):
        lines = pathlib.Path("/proc/cpuinfo").read_text().split("\n\n", 1)[0].splitlines()
        return tuple(line for line in lines if line.split("\t")[0].split(":")[0].strip() in wanted)
    return ()
