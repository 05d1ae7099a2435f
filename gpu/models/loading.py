"""From a model directory to a loaded model."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Callable

import torch

from gpu.cpu.library import Kernels
from gpu.device import choose_dtype
from gpu.models import fused
from gpu.models.base import Model
from gpu.models.llama import Decoder, read_spec
from gpu.models.registry import NATIVE, check_architecture
from gpu.weights import Checkpoint, load_into
from protocols.config import Config, Quantization
from protocols.errors import StartError

_NOT_QUANTIZED = (
    "--quantization int8 needs the CPU kernels, a model of the Llama, Mistral, Qwen2 or Qwen3 family, and to"
    " compute in bfloat16."
)


def load_model(
    config: Config, device: torch.device, progress: Callable[[str], None], kernels: Kernels | None = None
) -> tuple[Model, torch.dtype]:
    """The model of `config.model`, on the device, and the dtype it computes in. kernels: the CPU's, if any.

    StartError with a sentence for an architecture, option or weight file that cannot be served.
    """
    card = config.model
    check_architecture(card.architecture)
    directory = pathlib.Path(card.path)
    settings = json.loads((directory / "config.json").read_bytes())
    quantized = config.quantization is Quantization.INT8
    if settings.get("quantization_config"):
        raise StartError(f"{directory} holds quantised weights, which are not supported.")
    with Checkpoint(directory) as checkpoint:
        dtype = choose_dtype(config.dtype, checkpoint.dtype, device)
        if quantized and config.dtype == "auto":
            dtype = torch.bfloat16
        if card.architecture in NATIVE:
            decoder = Decoder(read_spec(card.architecture, settings), dtype, device)
            load_into(checkpoint, decoder.targets(), ignored=decoder.ignores, progress=progress)
            if kernels is not None and fused.fits(decoder, dtype, device, quantized=quantized):
                progress("packing weights" + (" as 8-bit integers" if quantized else ""))
                return fused.FusedDecoder(decoder, kernels, card.context, quantized=quantized), dtype
            if quantized:
                raise StartError(_NOT_QUANTIZED)
            decoder.seal()
            return decoder, dtype
    if quantized:
        raise StartError(_NOT_QUANTIZED)
    # Imported where needed: transformers takes seconds, and native models do without it.
    from gpu.models.transformers_backend import TransformersModel

    return TransformersModel.load(card, dtype, device, progress, kernels), dtype
