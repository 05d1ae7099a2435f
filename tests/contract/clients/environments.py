"""Environments for third-party clients: each its own, every version pinned, made once and kept in the cache.

A client is installed as its users install it, apart from the engine's environment, from the pins beside this
file. An environment is found again by the hash of its pins. Where it cannot be made, because the package
index is out of reach, say, the test that needs it is skipped with the installer's own words.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import os
import pathlib
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest

HERE = pathlib.Path(__file__).resolve().parent
INSTALL_SECONDS = 100.0
"""How long one environment may take to make; five of them take 45 s on a cold machine of two cores."""
_OFFLINE = {
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "LANGSMITH_TRACING": "false",
    "OPENAI_AGENTS_DISABLE_TRACING": "1",
}
"""Keeps the clients from calling home."""


def run_python(client: str, script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a script of this folder with `client`'s own Python."""
    return _run(str(python_of(client)), str(HERE / script), *arguments)


def run_node(script: pathlib.Path, *arguments: str, folder: pathlib.Path) -> subprocess.CompletedProcess[str]:
    """Run a copy of `script` in `folder`, beside the npm packages."""
    node, modules = _program("node"), node_modules()
    copy = shutil.copy(script, folder)
    (folder / "node_modules").symlink_to(modules)
    return _run(node, copy, *arguments)


def _run(*command: str) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("OPENAI_")}
    return subprocess.run(
        command, env=environment | _OFFLINE, capture_output=True, text=True, timeout=240, check=False
    )


def python_of(client: str) -> pathlib.Path:
    """The interpreter of the environment that `<client>.txt` pins."""
    pins = HERE / f"{client}.txt"
    version = "python{}.{}".format(*sys.version_info)

    def make(folder: pathlib.Path) -> None:
        _install(sys.executable, "-m", "venv", "--without-pip", str(folder))
        pip = (sys.executable, "-m", "pip", "--python", str(folder / "bin" / "python"), "install")
        quick = ("--no-deps", "--no-compile", "--only-binary", ":all:", "--disable-pip-version-check")
        _install(*pip, "--quiet", *quick, "--retries", "1", "--requirement", str(pins))

    return _made(client, version.encode() + pins.read_bytes(), make) / "bin" / "python"


def node_modules() -> pathlib.Path:
    """The folder of packages that `node/package-lock.json` pins."""
    npm = _program("npm")
    lock = HERE / "node" / "package-lock.json"

    def make(folder: pathlib.Path) -> None:
        folder.mkdir()
        for name in ("package.json", lock.name):
            shutil.copy(lock.with_name(name), folder)
        quick = ("--ignore-scripts", "--no-audit", "--no-fund", "--fetch-retries", "1")
        _install(npm, "ci", "--prefix", str(folder), *quick)

    return _made("node", lock.read_bytes(), make) / "node_modules"


def _made(name: str, pins: bytes, make: Callable[[pathlib.Path], None]) -> pathlib.Path:
    """The environment's folder; two runs of the tests do not make it at the same time."""
    folder = _cache() / f"{name}-{hashlib.sha256(pins).hexdigest()[:16]}"
    ready = folder / "ready"
    with _locked(folder.with_suffix(".lock")):
        if not ready.exists():
            shutil.rmtree(folder, ignore_errors=True)
            make(folder)
            ready.touch()
    return folder


@functools.cache
def _cache() -> pathlib.Path:
    base = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    folder = pathlib.Path(base) / "troupe" / "clients"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        pytest.skip(f"third-party clients have no place to be installed: {error}")
    return folder


@contextlib.contextmanager
def _locked(path: pathlib.Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _program(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found


def _install(*command: str) -> None:
    """Run an installer. One that has failed is not tried again: its index is as far for the next client."""
    installer = command[0]
    if installer in _FAILED:
        pytest.skip(_FAILED[installer])
    try:
        subprocess.run(command, capture_output=True, text=True, timeout=INSTALL_SECONDS, check=True)
    except subprocess.CalledProcessError as error:
        words = [line for line in error.stderr.splitlines() if "log of this run" not in line]
        _FAILED[installer] = f"a third-party client could not be installed: {' '.join(words[-1:])}"
    except subprocess.TimeoutExpired:
        _FAILED[installer] = f"a third-party client was not installed within {INSTALL_SECONDS:g} s"
    if installer in _FAILED:
        pytest.skip(_FAILED[installer])


_FAILED: dict[str, str] = {}
"""Why, by installer."""
