"""`python -m tools.chaos weights`: change the weights of a company while clients stream, and kill who
changes them.

load     checkpoints A and B by turns under 64 streams, in every mode: what is lost or wrong, how long it
stood kill     SIGKILL of an executor at each point of a change, round after round
trainer  a process that pushes its weights, step after step (examples/push_weights.py)
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import pathlib
import random
import statistics
import struct
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from typing import Any

import click
import numpy as np
import trio

from protocols.errors import VerbError
from protocols.keys import digest_of
from runtime import admin
from runtime.failpoints import VARIABLE
from tools.actorctl.serve import DEMO_MODEL
from tools.chaos.company import Company, company
from tools.chaos.generations import Generation, crowd, generate

POINTS = ("weights.stage=kill", "weights.staged=kill", "weights.commit=kill", "weights.committed=kill@2")
"""The points of a change at which an executor is killed, in turn; behind the second one it is decided. The
one that comes back from the third is told to commit once more."""
DECIDED = 2
VOCAB = 4096
PATIENCE = 120.0
KEY = "client"
_NOISE = {"BF16": ("<u2", 0x0007), "F32": ("<u4", 0x7FFFF)}
"""Bits of a number that may change: some per cent of it."""


@click.group()
def weights() -> None:
    """Change weights while clients stream."""


@weights.command()
@click.option("--streams", default=64, show_default=True)
@click.option("--tokens", default=120, show_default=True)
@click.option("--rounds", default=1, show_default=True, help="Of each mode.")
def load(streams: int, tokens: int, rounds: int) -> None:
    """Streams are neither lost nor wrong, and wait for so long."""
    with perturbed(1) as path, company(["--max-running", str(streams)], model=str(DEMO_MODEL)) as subject:
        wrong = trio.run(_load, subject, str(path), streams, tokens, rounds)
        wrong += subject.end()
    conclude(wrong)


@weights.command()
@click.option("--rounds", default=20, show_default=True)
@click.option("--streams", default=16, show_default=True)
def kill(rounds: int, streams: int) -> None:
    """One version everywhere, whoever dies when; and the answer to the administrator is true."""
    rules = [f"executor.0/{POINTS[i % len(POINTS)]}#{i + 1}" for i in range(rounds)]
    options = ["--executor", "hash", "--step-ms", "4", "--dp", "2"]
    with (
        tempfile.TemporaryDirectory() as folder,
        company(options, environment={VARIABLE: ";".join(rules)}) as subject,
    ):
        wrong = trio.run(_kill, subject, pathlib.Path(folder), rounds, streams)
        wrong += subject.end()
    conclude(wrong)


@weights.command()
@click.option("--updates", default=50, show_default=True)
@click.option("--streams", default=16, show_default=True)
def trainer(updates: int, streams: int) -> None:
    """Nothing leaks or hangs, and every answer tells the right versions."""
    with tempfile.TemporaryDirectory() as folder:
        keys = pathlib.Path(folder) / "keys.toml"
        keys.write_text(
            f'[keys.trainer]\nsha256 = "{digest_of("secret")}"\nadmin = true\n'
            f'[keys.client]\nsha256 = "{digest_of(KEY)}"\n'
        )
        with company(["--keys", str(keys)], model=str(DEMO_MODEL)) as subject:
            wrong = trio.run(_train, subject, updates, streams)
            wrong += subject.end()
    conclude(wrong)


def conclude(wrong: list[str]) -> None:
    """Tell what is wrong, and exit 1 where something is."""
    for line in wrong:
        click.echo(f"WRONG: {line}")
    click.echo("nothing is wrong" if not wrong else f"{len(wrong)} things are wrong")
    sys.exit(bool(wrong))


# Under load.


async def _load(subject: Company, path: str, streams: int, tokens: int, rounds: int) -> list[str]:
    await subject.ready()
    wrong: list[str] = []
    prompts = _prompts(streams)
    click.echo("mode   stood ms  whole ms  longest pause ms, p50  max  (in peace p50  max)")
    for number, mode in enumerate(["keep", "wait", "abort"] * rounds):
        before = await crowd(subject, prompts, tokens)
        reply, during = await _amid(subject, prompts, tokens, _next(number, path, mode))
        for pair in zip(before, during, strict=True):
            wrong += [f"{mode}: {reason}" for reason in _lost(mode, tokens, *pair)]
        if mode == "keep":
            wrong += await _inexact(subject, before, during, tokens)
        peace, waited = (sorted(each.pause * 1000 for each in found) for found in (before, during))
        click.echo(
            f"{mode:6} {reply['stopped_seconds'] * 1000:8.0f}  {reply['seconds'] * 1000:8.0f}  "
            f"{statistics.median(waited):22.0f}  {waited[-1]:4.0f}  "
            f"{statistics.median(peace):14.0f}  {peace[-1]:4.0f}"
        )
    return wrong


def _next(number: int, path: str, mode: str) -> dict[str, Any]:
    """B first, then A and B by turns."""
    request = {"mode": mode, "timeout": PATIENCE}
    if number == 0:
        return {**request, "verb": "weights.update", "source": path, "version": "b"}
    return {**request, "verb": "weights.rollback"}


async def _amid(
    subject: Company, prompts: list[list[int]], tokens: int, request: dict[str, Any]
) -> tuple[dict[str, Any], list[Generation]]:
    """Ask for a change when every stream is well under way: the answer, and the streams at their ends."""
    found = [Generation(prompt) for prompt in prompts]
    async with trio.open_nursery() as nursery:
        for each in found:
            nursery.start_soon(generate, subject, each.prompt, tokens, each)
        while not all(len(each.ids) >= tokens // 4 for each in found):
            await trio.sleep(0.01)
        reply = await admin.call(subject.address, request)
    return reply, found


def _lost(mode: str, tokens: int, before: Generation, during: Generation) -> Iterator[str]:
    """What is wrong with a stream amid a change. before: the same request, answered by the weights of
    before."""
    if during.error:
        yield during.error
    elif mode == "abort":
        if during.ids != before.ids[: len(during.ids)]:
            yield "an ended stream is no prefix of what it was to be"
    elif (len(during.ids), during.finish) != (tokens, "length"):
        yield f"a stream ended with {during.finish!r} after {len(during.ids)} tokens"
    elif mode == "wait" and during.ids != before.ids:
        yield "a stream that was waited for is not as it was to be"


async def _inexact(
    subject: Company, before: list[Generation], during: list[Generation], tokens: int
) -> list[str]:
    """Streams whose later tokens are not those with which the new weights go on from the earlier ones."""
    wrong = []
    for old, kept in zip(before, during, strict=True):
        pairs = enumerate(zip(old.ids, kept.ids, strict=False))
        same = next((i for i, (was, now) in pairs if was != now), tokens)
        if same < tokens:
            rest = await generate(subject, [*kept.prompt, *kept.ids[:same]], tokens - same)
            if rest.ids != kept.ids[same:] or len(rest.versions) != 1 or kept.versions[-1:] != rest.versions:
                wrong.append("keep: a stream does not go on as the new weights would")
    return wrong


# Under fire.


async def _kill(subject: Company, folder: pathlib.Path, rounds: int, streams: int) -> list[str]:
    await subject.ready()
    truths = {"default": (await generate(subject, _prompts(1)[0], 200)).ids}
    served, wrong = "default", list[str]()
    for number in range(rounds):
        point, version = POINTS[number % len(POINTS)].partition("=")[0], f"v{number}"
        decided = number % len(POINTS) >= DECIDED
        path = folder / f"{version}.safetensors"
        path.write_text(version)
        request: admin.Request = {
            "verb": "weights.update",
            "source": str(path),
            "version": version,
            "timeout": PATIENCE,
        }
        found: list[Generation] = []
        said = ""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_fill, found, subject, streams)
            await trio.sleep(0.2)
            try:
                await admin.call(subject.address, request)
            except VerbError as error:
                said = str(error)
        await subject.ready()
        wrong += [f"{point}: answered {said or 'that it serves'}"] if bool(said) is decided else []
        served = version if decided else served
        info = await admin.call(subject.address, {"verb": "weights.info", "verify": True})
        if info["version"] != served or len(info["verified"]) != 2:
            wrong.append(f"{point}: {info['version']} serves, not {served}")
        truths.setdefault(served, (await generate(subject, _prompts(1)[0], 200)).ids)
        wrong += [f"{point}: {reason}" for each in found if (reason := _unspliced(each, truths))]
        click.echo(f"{number + 1:3} {point:18} {served:8} {said or 'it serves'}")
    return wrong


async def _fill(found: list[Generation], subject: Company, streams: int) -> None:
    found += await crowd(subject, _prompts(1) * streams, 200)


def _unspliced(stream: Generation, truths: dict[str, list[int]]) -> str:
    """What is wrong with a stream that versions made one after the other."""
    if stream.error or len(stream.ids) != 200:
        return stream.error or f"{len(stream.ids)} tokens, then {stream.finish!r}"
    versions = iter(stream.versions)
    truth = truths.get(next(versions, ""), [])
    for place, token in enumerate(stream.ids):
        while place >= len(truth) or token != truth[place]:
            following = next(versions, "")
            if not following:
                return f"token {place} is of none of {stream.versions}"
            truth = truths.get(following, [])
    return ""


# Beside a trainer.


async def _train(subject: Company, updates: int, streams: int) -> list[str]:
    await subject.ready()
    prompts, found, wrong, over = _prompts(streams), list[Generation](), list[str](), trio.Event()
    command = [sys.executable, "examples/push_weights.py", str(DEMO_MODEL), "--updates", str(updates)]
    command += ["--url", f"http://127.0.0.1:{subject.port}"]
    replies: list[dict[str, Any]] = []
    sizes: list[dict[str, tuple[int, int]]] = []

    async def stream(prompt: list[int]) -> None:
        while not over.is_set():
            found.append(await generate(subject, prompt, 64, key=KEY))

    async with trio.open_nursery() as nursery:
        for prompt in prompts:
            nursery.start_soon(stream, prompt)
        async with trio.open_nursery() as running:
            environment = {**os.environ, "TROUPE_ADMIN_KEY": "secret"}
            run = functools.partial(trio.run_process, command, stdout=subprocess.PIPE, env=environment)
            process = await running.start(run)
            async for line in _lines(process.stdout):
                replies.append(json.loads(line))
                sizes.append(await _sizes(subject))
        over.set()
    stood = sorted(reply["stopped_seconds"] * 1000 for reply in replies)
    click.echo(f"{len(replies)} updates; stood {statistics.median(stood):.0f} ms, {stood[-1]:.0f} at most")
    for name, (memory, descriptors) in sizes[-1].items():
        early, few = sizes[len(sizes) // 5][name]
        click.echo(
            f"{name}: {early / 2**20:.0f} -> {memory / 2**20:.0f} MiB, {few} -> {descriptors} descriptors"
        )
        if descriptors > few + 8 or memory > 1.2 * early + 2**26:
            wrong.append(f"{name} grows")
    labels = ["default", *(f"step-{i + 1}" for i in range(updates))]
    wrong += [f"{len(replies)} of {updates} updates"] if len(replies) != updates else []
    wrong += [each.error or each.finish for each in found if each.error or len(each.ids) != 64]
    ranks = [[labels.index(version) for version in each.versions] for each in found]
    wrong += [f"versions {rank}" for rank in ranks if not rank or rank != sorted(rank)]
    seen = {version for each in found for version in each.versions}
    click.echo(f"{len(found)} answers, of {len(seen)} versions")
    return wrong


async def _lines(stream: trio.abc.ReceiveStream) -> AsyncIterator[bytes]:
    rest = b""
    async for data in stream:
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            yield line


async def _sizes(subject: Company) -> dict[str, tuple[int, int]]:
    """Resident bytes and open descriptors of the supervisor and the executor."""
    status = await subject.status()
    pids = {"supervisor": status["pid"]}
    pids |= {actor["name"]: actor["pid"] for actor in status["actors"] if actor["kind"] == "executor"}
    return {name: (resident(pid), len(os.listdir(f"/proc/{pid}/fd"))) for name, pid in pids.items()}


def resident(pid: int) -> int:
    """Bytes of a process."""
    lines = pathlib.Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS"))


# Requests and checkpoints.


def _prompts(count: int) -> list[list[int]]:
    """Random ones."""
    generator = random.Random(1)
    return [[generator.randrange(5, VOCAB) for _ in range(24)] for _ in range(count)]


@contextlib.contextmanager
def perturbed(seed: int) -> Iterator[pathlib.Path]:
    """The demo model's checkpoint with noise in the low bits of each matrix."""
    data = bytearray((DEMO_MODEL / "model.safetensors").read_bytes())
    (length,) = struct.unpack_from("<Q", data)
    generator = np.random.default_rng(seed)
    for name, entry in json.loads(data[8 : 8 + length]).items():
        if name == "__metadata__" or len(entry["shape"]) < 2:
            continue
        dtype, mask = _NOISE[entry["dtype"]]
        begin, end = (8 + length + at for at in entry["data_offsets"])
        numbers = np.frombuffer(memoryview(data)[begin:end], dtype)
        numbers ^= generator.integers(0, mask + 1, numbers.shape).astype(dtype)
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "model.safetensors"
        path.write_bytes(data)
        yield path
