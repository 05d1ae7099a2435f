"""What adapters cost: decode rates of the bare executor with and without them, in turn; and loads under
load."""

from __future__ import annotations

import json
import pathlib
import tempfile
from collections.abc import Mapping
from typing import Any

import click

from protocols.adapters import CONFIG, WEIGHTS, Adapter, digest_of
from protocols.config import Config, read_model_card
from tools.bench import offline
from tools.bench.peers import models
from tools.bench.statistics import spread


@click.command("lora")
@click.option("--adapters", default=16, show_default=True, help="One for each request.")
@click.option("--rank", default=8, show_default=True)
@click.option("--prompt", default=32, show_default=True, help="Tokens of a prompt.")
@click.option("--output", default=128, show_default=True, help="Tokens of an answer.")
@click.option("--repeats", default=5, show_default=True)
@click.option("--dtype", default="bfloat16", show_default=True)
def lora(adapters: int, rank: int, prompt: int, output: int, repeats: int, dtype: str) -> None:
    """A batch in which every request goes through another adapter, of all seven modules, beside the base
    model."""
    card = read_model_card(models.make("llama15m", models.default_cache()))
    limits: dict[str, Any] = {"max_running": adapters, "max_loras": adapters, "max_lora_rank": rank}
    config = Config(card, dtype=dtype, **limits)
    executor = offline.load_executor(config)
    with tempfile.TemporaryDirectory() as folder:
        shapes: Mapping[str, tuple[int, int]] = executor._model.lora.shapes
        loaded = [write(pathlib.Path(folder) / str(id), id, shapes, rank) for id in range(1, adapters + 1)]
        assert not executor.adapters.set(loaded)
    case, ids = offline.Case(adapters, prompt, output), [adapter.id for adapter in loaded]
    base, with_adapters = [], []
    for turn in range(repeats + 1):
        base.append(offline.run(executor, config, case, 2 * turn + 1))
        with_adapters.append(offline.run(executor, config, case, 2 * turn + 2, ids))
    pairs = list(zip(base[1:], with_adapters[1:], strict=True))
    decode = [other.decode_rate / one.decode_rate for one, other in pairs]
    prefill = [other.prefill_rate / one.prefill_rate for one, other in pairs]
    click.echo(f"decode, base model: {spread([one.decode_rate for one, _ in pairs])} tok/s")
    click.echo(f"decode, {adapters} adapters: {spread([other.decode_rate for _, other in pairs])} tok/s")
    click.echo(f"with adapters ÷ base: decode {spread(decode)}, prefill {spread(prefill)}")


def write(path: pathlib.Path, id: int, shapes: Mapping[str, tuple[int, int]], rank: int) -> Adapter:
    """A random adapter of all of a model's modules, as PEFT saves it."""
    import torch
    from safetensors.torch import save_file

    generator = torch.Generator().manual_seed(id)
    path.mkdir()
    tensors = {}
    for module, (n, k) in shapes.items():
        name = f"base_model.model.model.{module}"
        tensors[f"{name}.lora_A.weight"] = torch.randn(rank, k, generator=generator) / k**0.5
        tensors[f"{name}.lora_B.weight"] = torch.randn(n, rank, generator=generator) / rank**0.5
    save_file(tensors, path / WEIGHTS)
    (path / CONFIG).write_text(json.dumps({"peft_type": "LORA", "r": rank, "lora_alpha": rank}))
    return Adapter(id, f"a{id}", str(path), digest_of(path))
