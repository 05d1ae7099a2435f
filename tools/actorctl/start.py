"""What `actorctl serve` does: resolve its options into a Config and run the company in the foreground."""

from __future__ import annotations

import enum
import pathlib
from typing import Any

import click
import msgspec

from actors.answers.formats import AUTO, recognised
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
    KvCacheDtype,
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
from tools.actorctl.doors import check_doors
from tools.actorctl.lora import adapters_of
from tools.actorctl.serve import DEMO_MODEL

_CHOICES: dict[str, type[enum.StrEnum]] = {
    "policy": Policy,
    "balance": Balance,
    "keep_weights": Keep,
    "executor": ExecutorKind,
    "kernels": KernelChoice,
    "quantization": Quantization,
    "kv_cache_dtype": KvCacheDtype,
    "speculate": Speculate,
}


def run(model: str | None, options: dict[str, Any]) -> int:
    """Serve until the end; the exit code."""
    try:
        return supervise(company(resolve(model, options)), announce=_announce)
    except StartError as error:
        click.echo(f"actorctl: {error}", err=True)
        return error.exit_code


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
