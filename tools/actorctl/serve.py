"""`actorctl serve`: resolve the options into a Config and run the company in the foreground."""

from __future__ import annotations

import enum
import pathlib
import sys
from typing import Any

import click
import msgspec

from actors.answers.formats import AUTO, THOUGHT_FORMATS, TOOL_FORMATS, recognised
from actors.company import company
from actors.sizes import least_ring_bytes
from actors.tokenizer.model_files import read_chat_templates
from gpu.models.registry import check_architecture
from protocols.config import (
    Balance,
    Config,
    ExecutorKind,
    Keep,
    KernelChoice,
    ModelCard,
    Policy,
    Quantization,
    Speculate,
    attention_kinds,
    graph_sizes,
    read_model_card,
)
from protocols.errors import StartError
from protocols.keys import digest_of
from runtime.notices import Notice, describe
from runtime.supervisor import supervise
from tools.actorctl import hub
from tools.actorctl.doors import check_doors, door_options
from tools.actorctl.lora import adapters_of
from tools.actorctl.sizes import ByteSize

DEMO_MODEL = pathlib.Path(__file__).resolve().parent.parent / "demo" / "model"

_POSITIVE = click.IntRange(min=1)

_CHOICES: dict[str, type[enum.StrEnum]] = {
    "policy": Policy,
    "balance": Balance,
    "keep_weights": Keep,
    "executor": ExecutorKind,
    "kernels": KernelChoice,
    "quantization": Quantization,
    "speculate": Speculate,
}


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
@click.option(
    "--policy",
    type=click.Choice([each.value for each in Policy]),
    default=Policy.FCFS.value,
    show_default=True,
    help="Who is admitted next: first come, longest cached prefix, or lowest priority value.",
)
@click.option(
    "--burst-ms",
    type=click.FloatRange(0, 1000),
    default=8.0,
    show_default=True,
    help="How long the tokens of short steps may wait for each other, to be sent together; 0: not at all.",
)
@click.option("--radix/--no-radix", default=True, show_default=True, help="Prefix cache.")
@click.option(
    "--speculate",
    type=click.Choice([each.value for each in Speculate]),
    default=Speculate.OFF.value,
    show_default=True,
    help="Guess coming tokens from the text so far and verify them in one step; the tokens stay the same.",
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
    "--max-loras", type=_POSITIVE, default=8, show_default=True, help="Adapters in a batch at most."
)
@click.option(
    "--max-lora-rank", type=_POSITIVE, default=64, show_default=True, help="Rank of an adapter at most."
)
@click.option(
    "--keep-weights",
    type=click.Choice([each.value for each in Keep]),
    default=Keep.OPEN.value,
    show_default=True,
    help="Hold the files of weights and adapters open, for actors that come back; or a copy in memory, which"
    " nobody can overwrite.",
)
@click.option("--dp", type=click.IntRange(1, 64), default=1, show_default=True, help="Replicas.")
@click.option(
    "--balance",
    type=click.Choice([each.value for each in Balance]),
    default=Balance.MINIMUM_TOKENS.value,
    show_default=True,
    help="Which replica gets a request.",
)
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
@click.option(
    "--kernels",
    type=click.Choice([each.value for each in KernelChoice]),
    default=KernelChoice.AUTO.value,
    show_default=True,
    help="On a CPU: our own kernels (compiled once, with g++ or clang++), or torch's operations.",
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
@click.option(
    "--quantization",
    type=click.Choice([each.value for each in Quantization]),
    default=Quantization.NONE.value,
    show_default=True,
    help="Keep weights as 8-bit integers (CPU): half the memory to read for each token.",
)
@click.option(
    "--executor",
    type=click.Choice([each.value for each in ExecutorKind]),
    default=ExecutorKind.MODEL.value,
    hidden=True,
)
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
    """Serve MODEL (a Hugging Face directory, or a hub id where the network allows) until interrupted.

    Without MODEL the embedded demo model is served. SIGINT or SIGTERM drains and exits 0; a second one
    stops at once.
    """
    try:
        config = resolve(model, options)
        code = supervise(company(config), announce=_announce)
    except StartError as error:
        click.echo(f"actorctl: {error}", err=True)
        sys.exit(error.exit_code)
    sys.exit(code)


def resolve(model: str | None, options: dict[str, Any]) -> Config:
    """The Config that these options mean. StartError when the model cannot be served."""
    chosen = {key: value for key, value in options.items() if value is not None}
    card = _card(model, chosen.pop("served_name"), chosen.pop("max_model_len", 0))
    for key, kind in _CHOICES.items():
        chosen[key] = kind(chosen[key])
    if chosen["executor"] is ExecutorKind.MODEL:
        check_architecture(card.architecture)
    if chosen["page_size"] > 1024:
        raise StartError("--page-size may be 1024 at most.", exit_code=2)
    templates = read_chat_templates(pathlib.Path(card.path)).values()
    for key, found in zip(("tool_parser", "reasoning_parser"), recognised(templates), strict=True):
        chosen[key] = found if chosen[key] == AUTO else chosen[key]
    if not all(chosen["api_keys"]):
        raise StartError("an --api-key must not be empty.", exit_code=2)
    chosen["api_keys"] = tuple(map(digest_of, chosen["api_keys"]))
    chosen["loras"] = adapters_of(chosen["loras"], card.name)
    config = Config(model=card, **chosen)
    check_doors(config)
    attention_kinds(config.attention_backend)
    graph_sizes(config.cuda_graphs, config.max_running)
    if config.max_open >= 1 << 20:
        raise StartError("--max-open must be below 1048576.", exit_code=2)
    if config.speculate_min > config.speculate_max:
        raise StartError(
            f"--speculate-min {config.speculate_min} must not exceed --speculate-max {config.speculate_max}.",
            exit_code=2,
        )
    if config.chunk_size < config.max_running + config.page_size:
        raise StartError(
            f"--chunk-size {config.chunk_size} is too small for {config.max_running} running sequences and"
            f" pages of {config.page_size} tokens: it must be at least --max-running plus --page-size,"
            f" {config.max_running + config.page_size}.",
            exit_code=2,
        )
    return msgspec.structs.replace(config, ring_bytes=max(config.ring_bytes, least_ring_bytes(config)))


def _card(model: str | None, name: str, max_model_len: int) -> ModelCard:
    if model is None:
        return read_model_card(DEMO_MODEL, name=name or "troupe-demo", max_model_len=max_model_len)
    directory = pathlib.Path(model).expanduser()
    if not directory.exists() and hub.could_have(model):
        directory = hub.fetch(model)
        name = name or model
    return read_model_card(directory, name=name, max_model_len=max_model_len)


def _announce(notice: Notice) -> None:
    click.echo(describe(notice), err=True)
