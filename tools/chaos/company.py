"""A company to torment: started as a user would, watched for what it must not hold, log or leave behind."""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import click
import trio

from runtime import admin
from tools.launch import launched

_GRAVE = ("actor crashed", "mail dropped", "company failed", "Traceback")
"""What the log of a company that is only killed from outside must not hold: bugs and broken records."""
_FOLLOWING, _LONGEST = 40, 4000
"""Lines and characters that are told of each."""
_SETTLE_SECONDS = 60.0


@dataclasses.dataclass
class Company:
    """A running company. address: its admin socket; log: what it writes to stderr."""

    address: str
    process: subprocess.Popen[bytes]
    log: pathlib.Path
    host: str = ""
    port: int = 0
    model: str = ""

    async def status(self) -> dict[str, Any]:
        """The answer to the verb `status`."""
        return await admin.call(self.address, {"verb": "status"})

    async def ready(self) -> None:
        """Wait until every actor is ready; note where it listens."""
        while self.process.poll() is None:
            with contextlib.suppress(admin.Unreachable):
                status = await self.status()
                if status["state"] == "ready":
                    self.host, self.port, self.model = status["host"], status["port"], status["model"]
                    return
            await trio.sleep(0.1)
        raise click.ClickException(f"the company ended with {self.process.returncode}:\n{self.said()}")

    def said(self) -> str:
        """Everything logged so far."""
        return self.log.read_text(errors="replace")

    def grave(self) -> list[str]:
        """What the log has of bugs, and of records that were broken or stale: such lines, each with what
        follows it."""
        lines = self.said().splitlines()
        found = [number for number, line in enumerate(lines) if any(word in line for word in _GRAVE)]
        return ["\n".join(lines[number : number + _FOLLOWING])[:_LONGEST] for number in found]

    def end(self) -> list[str]:
        """What it still holds though nobody asks any more, and what is wrong with its end."""
        leaks = [*trio.run(self._settled), *self.grave()]
        self.process.terminate()
        if self.process.wait(60) != 0:
            leaks.append(f"the company ended with {self.process.returncode}")
        return leaks

    async def _settled(self) -> list[str]:
        held: list[str] = []
        with trio.move_on_after(_SETTLE_SECONDS):
            while True:
                status = await self.status()
                held = [found for actor in status["actors"] for found in holdings(actor)]
                if not held and status["state"] == "ready":
                    return []
                await trio.sleep(0.2)
        return held or ["not every actor came back"]


def holdings(actor: Mapping[str, Any]) -> list[str]:
    """Requests and pages that an actor of an idle company should not have."""
    match actor["kind"]:
        case "frontend":
            words = ["open_requests"]
        case "scheduler":
            words = ["running", "waiting", "pages_owned"]
        case _:
            return []
    wrong = [f"{actor['name']} has {word} {actor[word]}" for word in words if actor[word]]
    total = actor["pages_free"] + actor["pages_cached"] + actor["pages_owned"]
    if total != actor["pages_total"]:
        wrong.append(f"{actor['name']} has {total} pages of {actor['pages_total']}")
    return wrong


@contextlib.contextmanager
def company(
    options: Sequence[str],
    *,
    name: str = "",
    port: int = 0,
    model: str = "",
    environment: Mapping[str, str] | None = None,
) -> Iterator[Company]:
    """A company that may not be ready yet; killed, if it still runs, at the end."""
    options = [*([model] if model else []), "--log-level", "warning", *options]
    with launched(options, kind="chaos", name=name, port=port, environment=environment) as running:
        yield Company(running.address, running.process, running.log)
