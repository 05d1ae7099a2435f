"""From a model directory to a loaded model."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import torch

from gpu.assembly import Assembly
from gpu.cpu import fused
from gpu.cpu.library import Kernels
from gpu.device import choose_dtype, runs_triton
from gpu.kv_pool import check_eight_bits
from gpu.models.base import Model
from gpu.models.cuda import TritonDecoder
from gpu.models.llama import Decoder
from gpu.models.registry import NATIVE, check_architecture
from gpu.models.spec import DecoderSpec, read_spec
from gpu.weights import load_into, validate
from protocols.config import Config, Quantization
from protocols.errors import StartError
from protocols.weights import ORIGINAL, Weights

_NOT_QUANTIZED = (
    "--quantization needs a model of the Llama, Mistral, Qwen2 or Qwen3 family; on a CPU it is int8, computes"
    " in bfloat16 and needs the CPU kernels, which know no mixture of experts, or --kernels torch."
)


def load_model(
    config: Config,
    device: torch.device,
    progress: Callable[[str], None],
    kernels: Kernels | None = None,
    weights: Weights = ORIGINAL,
) -> tuple[Model, torch.dtype]:
    """The model of `config.model` with `weights`, on the device, and the dtype it computes in. kernels: the
    CPU's, if any.

    StartError with a sentence for an architecture, option or weight file that cannot be served.
    """
    card = config.model
    check_architecture(card.architecture)
    settings = json.loads(card.file("config.json").read_bytes())
    if settings.get("quantization_config"):
        raise StartError(f"{card.path} holds quantised weights, which are not supported.")
    if card.architecture in NATIVE:
        return _native(config, settings, device, progress, kernels, weights)
    if config.quantization is not Quantization.NONE:
        raise StartError(_NOT_QUANTIZED)
    # Imported where needed: transformers takes seconds, and native models do without it.
    from gpu.models.transformers_backend import TransformersModel

    with Assembly(card.own, ()) as own:
        dtype = _dtype(config, own, device, weights)
        model = TransformersModel.load(card, own, dtype, device, progress, kernels)
        own.confirm()
    if not weights.sources:
        return model, dtype
    with Assembly(card.own, weights.sources, model.wanted().keys()) as assembly:
        validate(assembly, model.wanted(), model.ignores)
        changed = [name for name, home in assembly.homes.items() if home]
        return model.renewed(assembly, changed, progress), dtype


def _native(
    config: Config,
    settings: dict[str, Any],
    device: torch.device,
    progress: Callable[[str], None],
    kernels: Kernels | None,
    weights: Weights,
) -> tuple[Model, torch.dtype]:
    """A model of our own."""
    card, quantization = config.model, config.quantization
    quantized = quantization is not Quantization.NONE
    if quantization is Quantization.FP8:
        check_eight_bits(device, "--quantization fp8")
    spec = read_spec(card.architecture, settings)
    wanted = Decoder(spec, torch.float32, torch.device("meta")).targets().keys()
    with Assembly(card.own, weights.sources, wanted) as assembly:
        dtype = _dtype(config, assembly, device, weights)
        decoder = blank(spec, dtype, device, card.context)
        load_into(assembly, decoder.targets(), ignored=decoder.ignores, progress=progress)
        assembly.confirm()
    whole = quantization is not Quantization.FP8
    if kernels is not None and whole and fused.fits(decoder, dtype, device, quantized=quantized):
        progress("packing weights" + (" as 8-bit integers" if quantized else ""))
        return fused.FusedDecoder(decoder, kernels, card.context, quantized=quantized), dtype
    if quantized and kernels is not None:
        raise StartError(_NOT_QUANTIZED)
    decoder.seal(quantization)
    return decoder, dtype


def blank(spec: DecoderSpec, dtype: torch.dtype, device: torch.device, context: int) -> Decoder:
    """An empty decoder for the device. context: positions that exist, at most."""
    return (
        TritonDecoder(spec, dtype, device, context) if runs_triton(device) else Decoder(spec, dtype, device)
    )


def _dtype(config: Config, stored: Assembly, device: torch.device, weights: Weights) -> torch.dtype:
    """What to compute in; what it was before the weights changed, whatever they are stored in."""
    if weights.dtype:
        return choose_dtype(weights.dtype, None, device)
    if config.quantization is not Quantization.NONE and config.dtype == "auto":
        return torch.bfloat16
    return choose_dtype(config.dtype, stored.dtype, device)
