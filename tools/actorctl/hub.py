"""Models from the Hugging Face hub, and in words why there are none."""

from __future__ import annotations

import os
import pathlib

import click

from protocols.errors import StartError

_FILES = ["*.json", "*.safetensors", "*.model", "*.jinja"]
"""Weights, tokenizer and templates; never code."""


def could_have(model: str) -> bool:
    """Whether `model` reads like the id of a model on the hub."""
    parts = model.split("/")
    return len(parts) == 2 and all(part and not part.startswith(".") for part in parts)


def fetch(model: str) -> pathlib.Path:
    """Download a model, unless the cache has it; where it lies. Raises StartError."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    click.echo(f"fetching {model} from the hub ...", err=True)
    os.environ.setdefault("HF_HUB_ETAG_TIMEOUT", "5")
    try:
        return pathlib.Path(snapshot_download(model, allow_patterns=_FILES))
    except (OSError, HfHubHTTPError, ValueError) as error:
        raise StartError(f"there is no model directory {model}, and {reason(error)}.") from error


def reason(error: Exception) -> str:
    """Why the hub gave nothing."""
    from huggingface_hub import errors

    match error:
        case errors.GatedRepoError():
            return "its owner on the hub has not given you access to it"
        case errors.RepositoryNotFoundError():
            return "the hub has no model of that name that you may see"
        case errors.LocalEntryNotFoundError():
            return "the hub cannot be reached"
        case errors.HfHubHTTPError():
            return f"the hub answered {error.response.status_code}"
        case OSError(strerror=str(sentence)):
            return f"it could not be fetched from the hub: {sentence}"
        case _:
            return "that is no name of a model on the hub"
