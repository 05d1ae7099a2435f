"""`actorctl serve`: its options. What comes of them: `tools.actorctl.start`."""

from __future__ import annotations

import enum
import pathlib
import sys
from collections.abc import Callable
from typing import Any, TypeVar

import click

from actors.answers.formats import THOUGHT_FORMATS, TOOL_FORMATS
from protocols.config import (
    Balance,
    ExecutorKind,
    Keep,
    KernelChoice,
    KvCacheDtype,
    Policy,
    Quantization,
    Speculate,
)
from tools.actorctl.doors import door_options
from tools.actorctl.sizes import ByteSize

DEMO_MODEL = pathlib.Path(__file__).resolve().parent.parent / "demo" / "model"

F = TypeVar("F", bound=Callable[..., Any] | click.Command)

_POSITIVE = click.IntRange(min=1)


def one_of(
    name: str, default: enum.StrEnum, help: str | None = None, *, hidden: bool = False
) -> Callable[[F], F]:
    """An option that takes a word of the default's kind."""
    words = click.Choice([each.value for each in type(default)])
    return click.option(name, type=words, default=default.value, show_default=True, help=help, hidden=hidden)


@click.command()
@click.argument("model", required=False)
@click.option("--served-name", default="", help="Name clients use for the model. [default: its directory's]")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="0 takes any.")
@click.option("--name", default="troupe", show_default=True, help="Name of this company for actorctl.")
@click.option("--socket", default="", help="Admin socket as a file (mode 0600) instead of an abstract name.")
@click.option(
    "--device",
    type=click.Choice(["auto", "cpu", "cuda"]),
    default="auto",
    show_default=True,
    help="Where the model runs.",
)
@click.option(
    "--dtype",
    type=click.Choice(["auto", "bfloat16", "float32"]),
    default="auto",
    show_default=True,
    help="Precision of weights and KV pool; auto keeps the checkpoint's where the device has it.",
)
@click.option("--max-model-len", type=_POSITIVE, help="Shorten the model's context to so many tokens.")
@click.option("--kv-memory", type=ByteSize(), default=0, help="Memory of the KV pool, e.g. 2GiB.")
@click.option(
    "--memory-fraction",
    type=click.FloatRange(0.05, 1.0),
    help="Share of a GPU's memory for everything, or of a CPU's free memory for the KV pool. [default: 0.9; "
    "a quarter]",
)
@click.option("--pages", type=_POSITIVE, help="Pages of the KV pool, instead of --kv-memory.")
@click.option("--page-size", type=_POSITIVE, default=16, show_default=True, help="Tokens in a KV page.")
@click.option("--max-running", type=_POSITIVE, default=64, show_default=True, help="Sequences in a batch.")
@click.option("--max-open", type=_POSITIVE, default=1024, show_default=True, help="Open requests at most.")
@click.option("--chunk-size", type=_POSITIVE, default=512, show_default=True, help="Tokens in a step.")
@click.option("--depth", type=click.IntRange(1, 8), default=2, show_default=True, help="Steps in flight.")
@one_of(
    "--policy",
    Policy.FCFS,
    "Who is admitted next: first come, longest cached prefix, or lowest priority value.",
)
@click.option(
    "--burst-ms",
    type=click.FloatRange(0, 1000),
    default=9.0,
    show_default=True,
    help="How long the tokens of short steps may wait for each other, to be sent together; 0: not at all.",
)
@click.option("--radix/--no-radix", default=True, show_default=True, help="Prefix cache.")
@one_of(
    "--speculate",
    Speculate.OFF,
    "Guess coming tokens from the text so far and verify them in one step; the tokens stay the same.",
)
@click.option(
    "--speculate-tokens",
    type=click.IntRange(1, 16),
    default=6,
    show_default=True,
    help="Tokens guessed for a sequence in a step at most.",
)
@click.option(
    "--speculate-min",
    type=click.IntRange(1, 16),
    default=2,
    show_default=True,
    help="Last tokens that must have occurred before for a guess, at least.",
)
@click.option(
    "--speculate-max",
    type=click.IntRange(1, 16),
    default=4,
    show_default=True,
    help="Last tokens that are looked for first; fewer, down to --speculate-min, where they are not found.",
)
@click.option(
    "--speculate-rows",
    type=click.IntRange(1, 1024),
    default=24,
    show_default=True,
    help="Tokens guessed in a step at most, for all sequences: with more of them running nothing is guessed.",
)
@click.option(
    "--lora",
    "loras",
    multiple=True,
    metavar="NAME=PATH",
    help="Load a LoRA adapter from the start, from a PEFT directory; more with `actorctl lora load`.",
)
@click.option(
    "--enable-lora",
    is_flag=True,
    help="On a GPU, make room for adapters at the start, as --lora does: loading one later is no pause.",
)
@click.option(
    "--max-loras", type=_POSITIVE, default=8, show_default=True, help="Adapters in a batch at most."
)
@click.option(
    "--max-lora-rank", type=_POSITIVE, default=64, show_default=True, help="Rank of an adapter at most."
)
@one_of(
    "--keep-weights",
    Keep.OPEN,
    "Hold the files of weights and adapters for actors that come back, and copy them when somebody is about"
    " to write over them; or copy them at once.",
)
@click.option("--dp", type=click.IntRange(1, 64), default=1, show_default=True, help="Replicas.")
@one_of("--balance", Balance.MINIMUM_TOKENS, "Which replica gets a request.")
@click.option(
    "--frontends", type=click.IntRange(1, 64), default=1, show_default=True, help="Processes for sockets."
)
@click.option(
    "--tokenizers", type=click.IntRange(1, 64), default=1, show_default=True, help="Processes for text."
)
@click.option(
    "--tool-parser",
    type=click.Choice(["auto", "none", *TOOL_FORMATS]),
    default="auto",
    show_default=True,
    help="Format of calls in answers; auto recognises it from the chat template.",
)
@click.option(
    "--reasoning-parser",
    type=click.Choice(["auto", "none", *THOUGHT_FORMATS]),
    default="auto",
    show_default=True,
    help="Format of thoughts in answers; auto recognises it from the chat template.",
)
@click.option("--threads", type=_POSITIVE, help="CPU threads of each executor. [default: from the cores]")
@one_of(
    "--kernels",
    KernelChoice.AUTO,
    "On a CPU: our own kernels (compiled once, with g++ or clang++), or torch's operations.",
)
@click.option(
    "--attention-backend",
    default="auto",
    show_default=True,
    metavar="NAME[,NAME]",
    help="On a GPU: torch, triton, flash or flashinfer; two, as in flash,triton: for prefill and decodes.",
)
@click.option(
    "--cuda-graphs",
    default="auto",
    show_default=True,
    metavar="off|auto|N,N,...",
    help="On a GPU: batch sizes of decodes that are recorded once and replayed.",
)
@one_of(
    "--quantization",
    Quantization.NONE,
    "Keep weights as 8-bit integers, or (GPU) as 8-bit floats: half the memory to read for each token.",
)
@one_of(
    "--kv-cache-dtype",
    KvCacheDtype.AUTO,
    "On a GPU: keep keys and values in 8 bits, for twice the context in the same memory.",
)
@one_of("--executor", ExecutorKind.MODEL, hidden=True)
@click.option("--step-ms", type=click.FloatRange(min=0), default=0.0, hidden=True)
@door_options
@click.option(
    "--drain-seconds",
    type=click.FloatRange(0, 3600),
    default=30.0,
    show_default=True,
    help="Time that open requests have to finish when the company is told to stop.",
)
@click.option(
    "--orphan-seconds",
    type=click.FloatRange(0, 86400),
    default=60.0,
    show_default=True,
    help="How long a response whose frontend died waits for its client.",
)
@click.option(
    "--linger-seconds",
    type=click.FloatRange(0, 86400),
    default=5.0,
    show_default=True,
    help="How long a finished response can still be resumed after its frontend's death.",
)
@click.option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"]),
    default="info",
    show_default=True,
    help="The least important lines that are logged.",
)
@click.option(
    "--log-format",
    type=click.Choice(["auto", "json", "console"]),
    default="auto",
    show_default=True,
    help="auto: for people on a terminal, JSON lines elsewhere.",
)
@click.option(
    "--trace-sample",
    type=click.FloatRange(0, 1),
    default=0.0,
    show_default=True,
    help="Share of the requests that are traced, besides those whose client says so (traceparent).",
)
def serve(model: str | None, **options: Any) -> None:
    """Serve MODEL until interrupted.

    MODEL is a Hugging Face directory, or a hub id where the network allows; without it the
    embedded demo model is served. SIGINT or SIGTERM drains and exits 0; a second one stops at once.
    """
    from tools.actorctl.start import run  # half of the time that any other command takes

    sys.exit(run(model, options))
