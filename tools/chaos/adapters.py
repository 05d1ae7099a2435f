"""`python -m tools.chaos adapters`: load, use and unload adapters, again and again, while others stream
through theirs, and kill an executor now and then. Nothing may grow, hang, or be wrong."""

from __future__ import annotations

import contextlib
import os
import pathlib
import tempfile
import time

import click
import trio

from protocols.adapters import CONFIG, WEIGHTS
from protocols.errors import VerbError
from runtime import admin
from tools.chaos.company import Company, company
from tools.chaos.generations import Generation, generate
from tools.chaos.weights import conclude, resident

STEADY = ("steady-0", "steady-1")
CHANGING = 4
SLOTS = 4
TOKENS, FEW = 48, 6
PROMPT = list(range(5, 40))
PATIENCE = 60.0
LOOKS = 10
_GROWTH, _DESCRIPTORS = 2**26, 16

Sizes = dict[str, tuple[int, int]]
"""Resident bytes and open descriptors, by actor."""


@click.command()
@click.option("--rounds", default=1000, show_default=True, help="Loads and unloads.")
@click.option("--streams", default=8, show_default=True, help="Through adapters that stay.")
@click.option("--kill-every", default=100, show_default=True, help="Rounds from a kill to the next; 0: none.")
@click.option("--step-ms", default=1.0, show_default=True, help="Step time of the executors.")
def adapters(rounds: int, streams: int, kill_every: int, step_ms: float) -> None:
    """Load and unload adapters under load."""
    options = ["--executor", "hash", "--step-ms", str(step_ms), "--dp", "2", "--max-loras", str(SLOTS)]
    before = set(os.listdir("/dev/shm"))
    with tempfile.TemporaryDirectory() as folder:
        for name in STEADY:
            options += ["--lora", f"{name}={_write(pathlib.Path(folder), name)}"]
        with company(options) as subject:
            siege = Siege(subject, pathlib.Path(folder), rounds, kill_every)
            trio.run(siege.run, streams)
            siege.wrong += subject.end()
    siege.wrong += [f"/dev/shm/{name} is left" for name in set(os.listdir("/dev/shm")) - before]
    conclude(siege.wrong)


def _write(folder: pathlib.Path, name: str) -> str:
    """What the hash executor takes for an adapter."""
    path = folder / name
    path.mkdir()
    (path / CONFIG).write_text("{}")
    (path / WEIGHTS).write_bytes(name.encode())
    return str(path)


class Siege:
    """One run. wrong: what should not have been."""

    def __init__(self, subject: Company, folder: pathlib.Path, rounds: int, kill_every: int) -> None:
        self.wrong: list[str] = []
        self._subject, self._folder = subject, folder
        self._rounds, self._kill_every = rounds, kill_every
        self._answers = self._kills = 0
        self._over = trio.Event()
        self._sizes: list[Sizes] = []

    async def run(self, streams: int) -> None:
        """Everything, to the end."""
        await self._subject.ready()
        truths = {name: (await self._answer(name, TOKENS)).ids for name in STEADY}
        paths = [_write(self._folder, f"changing-{i}") for i in range(CHANGING)]
        begun = time.monotonic()
        async with trio.open_nursery() as nursery:
            for i in range(streams):
                name = STEADY[i % len(STEADY)]
                nursery.start_soon(self._stream, name, truths[name])
            for number in range(self._rounds):
                await self._round(number, paths[number % CHANGING])
            self._over.set()
        seconds = time.monotonic() - begun
        await self._settle()
        click.echo(
            f"{self._rounds} loads and unloads in {seconds:.0f} s, {1000 * seconds / self._rounds:.0f} ms"
            f" each; {self._answers} answers, {self._kills} executors killed"
        )

    async def _round(self, number: int, path: str) -> None:
        """Load, use twice, unload."""
        name = f"changing-{number % CHANGING}"
        await self._ask({"verb": "lora.load", "name": name, "path": path})
        first = await self._answer(name, FEW)
        if self._kill_every and number % self._kill_every == self._kill_every - 1:
            victim = f"executor.{self._kills % 2}"
            self._kills += 1
            await self._ask({"verb": "actor.kill", "name": victim})
        again = await self._answer(name, FEW)
        if first.ids != again.ids:
            self.wrong.append(f"round {number}: two answers differ: {first.ids} and {again.ids}")
        await self._ask({"verb": "lora.unload", "name": name, "drain": True, "timeout": PATIENCE})
        if number % max(1, self._rounds // LOOKS) == 0:
            self._sizes.append(await self._look())

    async def _ask(self, request: admin.Request) -> None:
        try:
            with trio.fail_after(2 * PATIENCE):
                await admin.call(self._subject.address, request)
        except (VerbError, trio.TooSlowError) as error:
            self.wrong.append(f"{request}: {error or 'no answer'}")

    async def _stream(self, name: str, truth: list[int]) -> None:
        while not self._over.is_set():
            found = await self._answer(name, TOKENS)
            if found.ids != truth:
                self.wrong.append(f"a stream through {name} is not as before")

    async def _answer(self, name: str, tokens: int) -> Generation:
        found = Generation(PROMPT)
        with trio.move_on_after(2 * PATIENCE) as scope:
            await generate(self._subject, PROMPT, tokens, found, lora_path=name)
        self._answers += 1
        if found.error or scope.cancelled_caught or found.finish != "length":
            self.wrong.append(f"{name}: {found.error or found.finish or 'it hangs'}")
        return found

    async def _look(self) -> Sizes:
        status = await self._subject.status()
        pids = {"supervisor": status["pid"], **{each["name"]: each["pid"] for each in status["actors"]}}
        sizes: Sizes = {}
        for name, pid in pids.items():
            with contextlib.suppress(OSError):
                sizes[name] = resident(pid), len(os.listdir(f"/proc/{pid}/fd"))
        return sizes

    async def _settle(self) -> None:
        """What is left once nobody asks any more."""
        await self._subject.ready()
        listed = await admin.call(self._subject.address, {"verb": "lora.list"})
        left = [(each["name"], each["requests"]) for each in listed["adapters"]]
        if left != [(name, 0) for name in STEADY]:
            self.wrong.append(f"adapters are left: {left}")
        for name, (memory, descriptors) in (await self._look()).items():
            early, few = self._early(name) or (memory, descriptors)
            grown = f"{early / 2**20:4.0f} -> {memory / 2**20:4.0f} MiB"
            click.echo(f"{name:12} {grown}, {few} -> {descriptors} descriptors")
            if descriptors > few + _DESCRIPTORS or memory > 1.2 * early + _GROWTH:
                self.wrong.append(f"{name} grows")

    def _early(self, name: str) -> tuple[int, int] | None:
        """The most that an actor had in the first half: while others start again it has less than that."""
        seen = [sizes[name] for sizes in self._sizes[: len(self._sizes) // 2] if name in sizes]
        return (max(memory for memory, _ in seen), max(count for _, count in seen)) if seen else None
