"""`python -m tools.pictures`: the terminal pictures of the docs, of real commands on a real company.

Each command runs in a terminal of its own (a pty), as an operator's would;
what it shows last becomes an SVG.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import pathlib
import pty
import re
import struct
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Mapping

import click
from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console
from rich.text import Text

from runtime import admin
from tools.actorctl.serve import DEMO_MODEL
from tools.background import background
from tools.bench import load
from tools.bench.serve import random_prompts
from tools.launch import Launched, launched

DOCS = pathlib.Path(__file__).resolve().parent.parent / "docs"
COLUMNS = 124
_REDRAWN = re.compile(r"\x1b\[\d*[AJHK]|\x1b\[\?25[lh]|\r")
"""Where a live display goes back to draw itself again."""
_FORMAT = re.sub(r"@font-face \{\{.*?\}\}\s*", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL)
"""Without fonts from elsewhere."""


@click.command()
@click.option("--folder", type=click.Path(path_type=pathlib.Path), default=DOCS, show_default=True)
def main(folder: pathlib.Path) -> None:
    """Draw `top`, `trace request`, `weights update` and `actor list` as they look."""
    with (
        tempfile.TemporaryDirectory() as work,
        launched(("--trace-sample", "1"), kind="", name="demo") as demo,
    ):
        status = demo.await_ready()
        (pathlib.Path(work) / "new.safetensors").write_bytes(changed(DEMO_MODEL / "model.safetensors"))
        terminal = Terminal(pathlib.Path(work), {"TROUPE_NAME": "demo"})
        with loaded(status), killed(demo, "executor.0"):
            terminal.draw(folder / "terminal-top.svg", "top", "-n", "9")
            terminal.draw(folder / "terminal-actors.svg", "actor", "list")
            update = ("weights", "update", "new.safetensors", "--version", "step-1200")
            terminal.draw(folder / "terminal-weights.svg", *update)
        terminal.draw(folder / "terminal-trace.svg", "trace", "request", traced(status))


class Terminal:
    """Where commands run. folder: their working directory."""

    def __init__(self, folder: pathlib.Path, environment: Mapping[str, str]) -> None:
        size = {"COLUMNS": str(COLUMNS), "LINES": "50", "TERM": "xterm-256color"}
        paths = {"PYTHONPATH": str(DOCS.parent)}
        self._environment = {**os.environ, **environment, **size, **paths}
        self._folder = folder

    def draw(self, path: pathlib.Path, *words: str) -> None:
        """Run one and save its picture."""
        shown = _REDRAWN.split(self._run(words))
        text = next(piece for piece in reversed(shown) if piece.strip())
        console = Console(record=True, width=COLUMNS, file=io.StringIO())
        console.print(Text.from_ansi(f"\x1b[1m$ actorctl {' '.join(words)}\x1b[0m\n{text.rstrip()}"))
        console.save_svg(str(path), title="actorctl", code_format=_FORMAT)
        click.echo(f"{path}", err=True)

    def _run(self, words: tuple[str, ...]) -> str:
        mine, its = pty.openpty()
        command = [sys.executable, "-m", "tools.actorctl.main", *words]
        with subprocess.Popen(
            command, cwd=self._folder, env=self._environment, stdin=its, stdout=its, stderr=its
        ):
            os.close(its)
            written = b""
            with contextlib.suppress(OSError):
                while data := os.read(mine, 1 << 16):
                    written += data
        os.close(mine)
        return written.decode().replace("\r\n", "\n")


def loaded(status: Mapping[str, object]) -> contextlib.AbstractContextManager[None]:
    """Twelve clients meanwhile."""
    workload = load.Workload(str(status["model"]), 12, random_prompts(24, 60), 300)

    def ask(over: threading.Event) -> None:
        while not over.is_set():
            load.run(str(status["host"]), int(str(status["port"])), workload, load.HttpDialogue)

    return background(ask)


def killed(demo: Launched, name: str) -> contextlib.AbstractContextManager[None]:
    """An actor is killed soon."""

    def kill(_over: threading.Event) -> None:
        time.sleep(3.0)
        admin.ask(demo.address, {"verb": "actor.kill", "name": name})

    return background(kill)


def traced(status: Mapping[str, object]) -> str:
    """The x-request-id of an answer."""
    body = {"model": status["model"], "prompt": "The lighthouse", "max_tokens": 60, "ignore_eos": True}
    head = {"content-type": "application/json"}
    asked = urllib.request.Request(f"{status['url']}/v1/completions", json.dumps(body).encode(), head)
    with urllib.request.urlopen(asked, timeout=120) as answer:
        answer.read()
        return str(answer.headers["x-request-id"])


def changed(path: pathlib.Path) -> bytes:
    """A safetensors file with one tensor of another, a little changed."""
    data = path.read_bytes()
    (size,) = struct.unpack_from("<Q", data)
    header = json.loads(data[8 : 8 + size])
    name = next(name for name in header if name.endswith("norm.weight"))
    begin, end = header[name]["data_offsets"]
    tensor = bytearray(data[8 + size + begin : 8 + size + end])
    tensor[0] ^= 1
    head = json.dumps({name: {**header[name], "data_offsets": [0, len(tensor)]}}).encode()
    return struct.pack("<Q", len(head)) + head + tensor


if __name__ == "__main__":
    main()
