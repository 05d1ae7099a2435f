"""What must be known of a transformers model before it may be served, and loading its weights.

Code that comes with a model is never run. The only module that imports transformers.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
import transformers
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from gpu.weights import Tensors
from protocols.config import ModelCard
from protocols.errors import StartError

_LAYER_TYPES = {"full_attention", "sliding_attention"}


def read_config(card: ModelCard) -> Any:
    """The config of a decoder-only model whose layers are plain attention; StartError for any other."""
    try:
        settings = json.loads(card.file("config.json").read_bytes())
        config = transformers.CONFIG_MAPPING[settings["model_type"]].from_dict(settings)
    except Exception as error:
        # transformers raises whatever a config's validation raises; all of it is the model's fault.
        raise StartError(f"transformers refuses the config of {card.path}: {first_line(error)}") from error
    known = transformers.MODEL_FOR_CAUSAL_LM_MAPPING
    model_class = known.get(type(config), None)
    if model_class is None or model_class.__name__ != card.architecture:
        raise StartError(f"transformers does not recognise {card.path} as a {card.architecture}.")
    for reason in _objections(config, model_class, card):
        raise StartError(f"{card.architecture} cannot be served in pages: {reason}.")
    return config


def _objections(config: Any, model_class: Any, card: ModelCard) -> Iterator[str]:
    if config.is_encoder_decoder:
        yield "it is an encoder-decoder model"
    if config.get_text_config() is not config:
        yield "it takes more than text"
    if getattr(model_class, "_is_stateful", False):
        yield "it keeps a recurrent state"
    if strange := sorted(set(getattr(config, "layer_types", None) or ()) - _LAYER_TYPES):
        yield f"it has layers of type {strange[0]!r}"
    for rope in _rope_sections(getattr(config, "rope_parameters", None) or {}):
        limit = rope.get("original_max_position_embeddings") or card.context
        if rope.get("rope_type") == "longrope" and card.context > limit:
            yield (
                f"its position encoding changes with the length past {limit} tokens "
                f"(shorten the context: --max-model-len {limit})"
            )


def _rope_sections(parameters: dict[str, Any]) -> Iterable[dict[str, Any]]:
    nested = [value for value in parameters.values() if isinstance(value, dict)]
    return nested or [parameters]


def register_attention(name: str, function: Callable[..., Any]) -> None:
    """Make `name` an attention implementation. It gets no mask: none is registered for it."""
    ALL_ATTENTION_FUNCTIONS.register(name, function)


def load_weights(
    card: ModelCard, tensors: Tensors, config: Any, dtype: torch.dtype, device: torch.device, attention: str
) -> Any:
    """The model with its weights, which are read before transformers sees them: nothing is mapped from files
    that may change. StartError when one is missing, unexpected or misshapen."""
    transformers.utils.logging.disable_progress_bar()
    try:
        model, report = transformers.MODEL_FOR_CAUSAL_LM_MAPPING[type(config)].from_pretrained(
            None,
            config=config,
            state_dict={name: tensors.read(name) for name in tensors.names},
            dtype=dtype,
            attn_implementation=attention,
            output_loading_info=True,
        )
    except StartError:
        raise
    except Exception as error:
        if isinstance(error, KeyError) and error.args == (attention,):
            reason = "it does not attend through transformers' attention interface"
            raise StartError(f"{card.architecture} cannot be served in pages: {reason}.") from error
        raise StartError(f"transformers cannot load {card.path}: {first_line(error)}") from error
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if report.get(kind):
            raise StartError(
                f"the weights in {card.path} do not fit: {kind} {sorted(map(str, report[kind]))[:3]}."
            )
    return model.eval().to(device)


def check_windows(card: ModelCard, config: Any, windows: tuple[int, ...]) -> None:
    """The windows that the layers asked attention for must be those of the config.

    A model may build a window into its mask alone, and the self-test is shorter than most windows.
    """
    window = getattr(config, "sliding_window", None) or 0
    types = getattr(config, "layer_types", None)
    if types is not None:
        declared = [window if kind == "sliding_attention" else 0 for kind in types]
    else:
        used = window and getattr(config, "use_sliding_window", True)
        declared = [window] * len(windows) if used and not any(windows) else list(windows)
    for want, got in zip(declared, windows, strict=False):
        if want != got and min(want or card.context, got or card.context) < card.context:
            raise StartError(
                f"{card.architecture} cannot be served in pages: it does not tell attention its "
                f"window of {want or got} tokens."
            )


def first_line(error: Exception) -> str:
    """An exception of somebody else's code as the reason in a sentence."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
