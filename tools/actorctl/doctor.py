"""`actorctl doctor`: whether this machine has what a company needs."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import os
import pathlib
import platform
import resource
import shutil
import sys
from collections.abc import Iterator

import click

from protocols.compiling import Unavailable
from runtime.native import load
from tools.actorctl.output import output_option, show
from tools.actorctl.target import FAILED, OK

LEAST_SHM = 256 * 2**20
"""Bytes of shared memory below which a company of the default options does not start."""
LEAST_FILES = 4096
FEATURES = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")
HEADINGS = (("name", "CHECK"), ("state", "STATE"), ("detail", "DETAIL"))
PACKAGES = ("troupe", "torch", "trio", "msgspec", "websockets", "h11", "llguidance", "tokenizers")


@dataclasses.dataclass(frozen=True)
class Finding:
    """One thing looked at. state: "ok", "warning" (it works, worse) or "wrong" (it does not)."""

    name: str
    state: str
    detail: str


@click.command()
@output_option
def doctor(output: str) -> None:
    """Look at shared memory, limits, processor, GPU and versions. Exits 1 where something is wrong."""
    findings = list(examine())
    rows = [dataclasses.asdict(finding) for finding in findings]
    show({"findings": rows}, rows, output, headings=HEADINGS)
    sys.exit(FAILED if any(finding.state == "wrong" for finding in findings) else OK)


def examine() -> Iterator[Finding]:
    """Everything there is to look at, without torch, which takes seconds to import."""
    yield _python()
    yield _platform()
    yield _shared_memory()
    yield _left_behind()
    yield _files()
    yield _features()
    yield _compiler()
    yield _rings()
    yield _gpu()
    yield from map(_version, PACKAGES)


def _python() -> Finding:
    found = platform.python_version()
    return Finding(
        "python", "ok" if sys.version_info >= (3, 11) else "wrong", f"{found}; 3.11 or later is needed"
    )


def _platform() -> Finding:
    right = sys.platform == "linux" and platform.machine() == "x86_64"
    return Finding("platform", "ok" if right else "wrong", f"{sys.platform} on {platform.machine()}")


def _shared_memory() -> Finding:
    path = pathlib.Path("/dev/shm")
    if not path.is_dir():
        return Finding("shared memory", "wrong", "there is no /dev/shm")
    free = shutil.disk_usage(path).free
    state = "ok" if free >= LEAST_SHM else "wrong"
    return Finding(
        "shared memory", state, f"{free / 2**20:.0f} MiB free; {LEAST_SHM / 2**20:.0f} MiB are needed"
    )


def _left_behind() -> Finding:
    names = sorted(path.name for path in pathlib.Path("/dev/shm").glob("troupe*"))
    if names:
        return Finding("leftovers", "warning", f"{', '.join(names[:8])} in /dev/shm")
    return Finding("leftovers", "ok", "none: nothing of a company has a name")


def _files() -> Finding:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = "no limit" if hard == resource.RLIM_INFINITY else str(hard)
    enough = hard == resource.RLIM_INFINITY or hard >= LEAST_FILES
    return Finding(
        "open files", "ok" if enough else "warning", f"{soft}, which a company may raise to {most}"
    )


def _features() -> Finding:
    text = pathlib.Path("/proc/cpuinfo").read_text()
    flags = next((line.split() for line in text.splitlines() if line.startswith("flags")), [])
    found = [name for name in FEATURES if name in flags]
    cores = len(os.sched_getaffinity(0))
    return Finding(
        "processor", "ok" if "avx2" in found else "warning", f"{cores} cores; {', '.join(found) or 'no AVX2'}"
    )


def _compiler() -> Finding:
    found = next(filter(None, map(shutil.which, ("g++", "clang++"))), None)
    if found is None:
        return Finding("compiler", "warning", "neither g++ nor clang++: CPU models run on torch's operations")
    return Finding("compiler", "ok", found)


def _rings() -> Finding:
    try:
        load()
    except Unavailable as error:
        return Finding("rings", "warning", f"Python moves the mail between actors, slower: {error}")
    return Finding("rings", "ok", "their core is compiled")


def _gpu() -> Finding:
    if not pathlib.Path("/dev/nvidiactl").exists():
        return Finding("gpu", "ok", "none: models run on the CPU")
    driver = pathlib.Path("/proc/driver/nvidia/version")
    text = driver.read_text().splitlines()[0] if driver.is_file() else "a driver of unknown version"
    return Finding("gpu", "ok", " ".join(text.split()))


def _version(package: str) -> Finding:
    try:
        return Finding(package, "ok", importlib.metadata.version(package))
    except importlib.metadata.PackageNotFoundError:
        return Finding(package, "warning" if package == "troupe" else "wrong", "not installed")
