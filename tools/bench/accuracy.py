"""What a precision costs: perplexity, and how often the most likely token is that of float32.

The demo model reads conversations that its corpus writes from a fresh seed, token by token, once in each
precision. Everything runs through the executor's own models and pages.
"""

from __future__ import annotations

import dataclasses
import pathlib
import random
from collections.abc import Iterator
from typing import Any

import click
import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from gpu.attention import Batch
from gpu.attention.choice import choose
from gpu.cpu.start import start
from gpu.kv_pool import KvPool, stored_as
from gpu.models.base import Inputs
from gpu.models.loading import load_model
from protocols.config import Config, KernelChoice, KvCacheDtype, Quantization, read_model_card
from tools.actorctl.serve import DEMO_MODEL
from tools.demo import corpus

PAGE = 16
SEED = 20_260
_TORCH: dict[str, Any] = {"dtype": "bfloat16", "kernels": KernelChoice.TORCH}
PRECISIONS: dict[str, dict[str, Any]] = {
    "float32": {"dtype": "float32"},
    "bfloat16": {"dtype": "bfloat16"},
    "bfloat16, torch": {"dtype": "bfloat16", "kernels": KernelChoice.TORCH},
    "int8": {"dtype": "auto", "quantization": Quantization.INT8},
    "int8, torch": {**_TORCH, "quantization": Quantization.INT8},
    "fp8, torch": {**_TORCH, "quantization": Quantization.FP8},
    "fp8 KV, torch": {**_TORCH, "kv_cache_dtype": KvCacheDtype.FP8},
    "fp8, fp8 KV, torch": {**_TORCH, "quantization": Quantization.FP8, "kv_cache_dtype": KvCacheDtype.FP8},
}


@dataclasses.dataclass(frozen=True)
class Cost:
    """perplexity: of the text. agreement: share of positions whose most likely token is float32's."""

    perplexity: float
    agreement: float


def texts(tokenizer: Tokenizer, count: int, context: int) -> Iterator[list[int]]:
    """Token ids of `count` conversations that are not longer than the context."""
    rng = random.Random(SEED)
    while count:
        text = "".join(part for part, _ in corpus.conversation(rng))
        ids: list[int] = tokenizer.encode(text, add_special_tokens=False).ids[:context]
        if len(ids) > 1:
            yield ids
            count -= 1


@torch.inference_mode()
def read(model_path: pathlib.Path, options: dict[str, Any], documents: list[list[int]]) -> list[Tensor]:
    """Logits [len, vocab] of every document."""
    config = Config(read_model_card(model_path), device="cpu", threads=1, **options)
    kernels = start(1, lambda _: None) if config.kernels is KernelChoice.AUTO else None
    model, dtype = load_model(config, torch.device("cpu"), lambda _: None, kernels)
    pages = -(-max(map(len, documents)) // PAGE)
    cpu = torch.device("cpu")
    attention = choose(KvPool(model.kv, pages, PAGE, dtype, cpu, stored_as(config, dtype, cpu)), kernels)
    logits = []
    for ids in documents:
        at = np.arange(len(ids))
        lengths = np.array([len(ids)], np.int64)
        batch = Batch(lengths, lengths, np.arange(pages, dtype=np.int32)[None], at, at, 0)
        step = attention.prepare(batch)
        logits.append(model.forward(Inputs(torch.tensor(ids), torch.from_numpy(at), step)).clone())
    return logits


def cost(logits: list[Tensor], reference: list[Tensor], documents: list[list[int]]) -> Cost:
    """Of one precision beside the reference."""
    losses, same = [], []
    for rows, best, ids in zip(logits, reference, documents, strict=True):
        losses.append(torch.nn.functional.cross_entropy(rows[:-1], torch.tensor(ids[1:]), reduction="none"))
        same.append(rows.argmax(1) == best.argmax(1))
    return Cost(float(torch.cat(losses).mean().exp()), float(torch.cat(same).float().mean()))


def measure(model: pathlib.Path, count: int) -> dict[str, Cost]:
    """The cost of each precision."""
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    documents = list(texts(tokenizer, count, read_model_card(model).context))
    logits = {name: read(model, options, documents) for name, options in PRECISIONS.items()}
    return {name: cost(rows, logits["float32"], documents) for name, rows in logits.items()}


@click.command("accuracy")
@click.option("--model", type=click.Path(exists=True, path_type=pathlib.Path), default=DEMO_MODEL)
@click.option("--conversations", default=100, show_default=True)
def accuracy(model: pathlib.Path, conversations: int) -> None:
    """What bfloat16 and 8-bit weights cost beside float32."""
    click.echo(f"{'precision':<18}{'perplexity':>11}{'same greedy token':>20}")
    for name, each in measure(model, conversations).items():
        click.echo(f"{name:<18}{each.perplexity:>11.4f}{each.agreement:>19.2%}")
