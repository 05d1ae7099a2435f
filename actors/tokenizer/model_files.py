"""The small JSON and Jinja files around a tokenizer: its named special tokens and its chat templates."""

from __future__ import annotations

import json
import pathlib
from typing import Any

from protocols.errors import StartError

_NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


def read_object(path: pathlib.Path) -> dict[str, Any]:
    """A JSON object, {} where the file is missing; StartError where it is something else."""
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise StartError(f"{path} is not readable JSON.") from error
    if not isinstance(value, dict):
        raise StartError(f"{path} must hold a JSON object.")
    return value


def read_special_tokens(directory: pathlib.Path) -> dict[str, str]:
    """Named special tokens ("bos_token" -> "<s>" ...), as chat templates see them.

    From `tokenizer_config.json`, then `special_tokens_map.json` for what is missing there. Names of the
    model's own (`image_token`, or the object `extra_special_tokens`) count as in transformers 5.
    """
    config = read_object(directory / "tokenizer_config.json")
    legacy = read_object(directory / "special_tokens_map.json")
    extra = config.get("extra_special_tokens")
    fields = {**legacy, **config, **(extra if isinstance(extra, dict) else {})}
    own = {name for name in config if name.endswith("_token")} | set(extra if isinstance(extra, dict) else ())
    texts = {name: _text(fields.get(name)) for name in (*_NAMED, *sorted(own))}
    return {name: text for name, text in texts.items() if text is not None}


def _text(value: object) -> str | None:
    match value:
        case str(text) | {"content": str(text)}:
            return text
        case _:
            return None


def read_chat_templates(directory: pathlib.Path) -> dict[str, str]:
    """Jinja texts by name; {} for a model without any.

    `chat_template.jinja` (with `additional_chat_templates/*.jinja`) comes before `tokenizer_config.json`,
    and that before `chat_template.json`.
    """
    files = {path.stem: path for path in sorted((directory / "additional_chat_templates").glob("*.jinja"))}
    if (directory / "chat_template.jinja").is_file():
        files["default"] = directory / "chat_template.jinja"
    if files:
        return {name: _read_text(path) for name, path in files.items()}
    for name in ("tokenizer_config.json", "chat_template.json"):
        if found := _named_templates(read_object(directory / name).get("chat_template")):
            return found
    return {}


def _read_text(path: pathlib.Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise StartError(f"{path} is not readable text.") from error


def _named_templates(value: object) -> dict[str, str]:
    match value:
        case str(source):
            return {"default": source}
        case list(entries):
            return {
                entry["name"]: entry["template"]
                for entry in entries
                if isinstance(entry, dict)
                and isinstance(entry.get("name"), str)
                and isinstance(entry.get("template"), str)
            }
        case _:
            return {}
