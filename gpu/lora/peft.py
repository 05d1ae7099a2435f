"""Reading an adapter as PEFT saves it: `adapter_config.json` and `adapter_model.safetensors` of a directory.

Everything is checked against the model before anything of it is used. What would change the model in
another way than by A and B of its linear maps is refused by name.
"""

from __future__ import annotations

import dataclasses
import json
import math
import pathlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from gpu.lora.base import Changes, LoraSlots, LowRank
from gpu.safetensors_file import SafetensorsFile
from protocols.adapters import CONFIG, WEIGHTS, Adapter, open_regular
from protocols.errors import StartError, UserError

MAX_CONFIG = 1 << 20
"""Bytes of a configuration at most."""

_TOLD = frozenset(
    "peft_type r lora_alpha use_rslora rank_pattern alpha_pattern init_lora_weights bias auto_mapping"
    " base_model_name_or_path revision task_type inference_mode peft_version lora_dropout target_modules"
    " exclude_modules layers_to_transform layers_pattern megatron_core qalora_group_size eva_config"
    " runtime_config ensure_weight_tying".split()
)
"""Fields that are read here, or that say nothing of what an adapter computes."""
_PLAIN_STARTS = (True, False, None, "gaussian", "orthogonal", "eva")
"""Ways in which an adapter's matrices were begun that leave the base model's as they are."""
_KEY = re.compile(r"(?:base_model\.)?(?:model\.)*(?P<module>.+)\.lora_(?P<part>[AB])(?:\.default)?\.weight")
_PATTERN = re.compile(r"\^?\w+(?:\\?\.\w+)*\$?")
_FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


@dataclasses.dataclass(frozen=True)
class Scaling:
    """How strong an adapter's change of a module is."""

    rank: float
    alpha: float
    rank_stabilised: bool
    ranks: Mapping[str, float]
    alphas: Mapping[str, float]

    def of(self, module: str) -> tuple[int, float]:
        """The rank that the configuration gives the module, and its scale."""
        rank, alpha = _matching(self.ranks, module, self.rank), _matching(self.alphas, module, self.alpha)
        return int(rank), alpha / (math.sqrt(rank) if self.rank_stabilised else rank)


def _matching(patterns: Mapping[str, float], module: str, default: float) -> float:
    """The first pattern that names the module, or the end of its name, as PEFT looks for it."""
    whole = f"model.{module}"
    for name, value in patterns.items():
        if whole == name.removeprefix("^") or (name[0] != "^" and whole.endswith(f".{name}")):
            return value
    return default


def read_adapter(
    adapter: Adapter, shapes: Mapping[str, tuple[int, int]], max_rank: int
) -> tuple[Changes, str]:
    """What `adapter` changes, for a model whose modules have these `shapes`, and the digest of its files.

    UserError with a sentence where it is not an adapter, asks for what is not served, or does not fit.
    """
    directory = pathlib.Path(adapter.path)
    raw = _read_config(adapter, directory)
    scaling = _scaling(raw, directory)
    try:
        file = SafetensorsFile(adapter.file(WEIGHTS), title=directory / WEIGHTS)
    except StartError as error:
        raise refused(_no_weights(directory) or str(error)) from error
    try:
        changes = _changes(file, shapes, scaling, max_rank)
        return changes, adapter.digest_now()
    except (StartError, OSError) as error:
        raise refused(str(error)) from error
    finally:
        file.close()


def refused(sentence: str) -> UserError:
    """An adapter that cannot be loaded."""
    return UserError(sentence, code="invalid_adapter", param="lora_path")


def _no_weights(directory: pathlib.Path) -> str:
    if (directory / WEIGHTS).exists():
        return ""
    if next(directory.glob("adapter_model.bin"), None) is not None:
        return (
            f"{directory} holds only pickled weights, which can run code and are never loaded: "
            f"convert them to {WEIGHTS}."
        )
    return f"{directory} holds no {WEIGHTS}."


def _read_config(adapter: Adapter, directory: pathlib.Path) -> dict[str, Any]:
    path = directory / CONFIG
    if not adapter.held and not directory.is_dir():
        raise refused(f"there is no adapter directory {directory}.")
    try:
        with open_regular(adapter.file(CONFIG)) as file:
            text = file.read(MAX_CONFIG + 1)
        value = json.loads(text) if len(text) <= MAX_CONFIG else None
    except OSError as error:
        raise refused(f"cannot read {path}: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        raise refused(f"{path} is not valid JSON.") from error
    if not isinstance(value, dict):
        raise refused(f"{path} must hold a JSON object of at most {MAX_CONFIG} bytes.")
    return value


def _scaling(raw: dict[str, Any], directory: pathlib.Path) -> Scaling:
    """What the configuration says of the strength of changes; refuses what it says that is not served."""
    if raw.get("peft_type") != "LORA":
        raise refused(f"{directory} holds an adapter of the type {_shown(raw.get('peft_type'))}, not LORA.")
    for field, value in raw.items():
        if field not in _TOLD and value not in (None, False, [], {}, ""):
            raise refused(f"{CONFIG}: {_shown(field)} is not supported.")
    if raw.get("bias", "none") != "none":
        raise refused(f"{CONFIG}: bias {_shown(raw['bias'])} is not supported: only 'none' is.")
    start = raw.get("init_lora_weights", True)
    if start not in _PLAIN_STARTS:
        raise refused(
            f"{CONFIG}: init_lora_weights {_shown(start)} changes the base model's weights; convert the"
            " adapter to plain LoRA when saving it."
        )
    return Scaling(
        rank=_positive(raw, "r", whole=True),
        alpha=_positive(raw, "lora_alpha"),
        rank_stabilised=bool(raw.get("use_rslora")),
        ranks=_patterns(raw, "rank_pattern", whole=True),
        alphas=_patterns(raw, "alpha_pattern"),
    )


def _positive(raw: Mapping[str, Any], field: str, *, whole: bool = False) -> float:
    value: Any = raw.get(field)
    if type(value) not in (int, float) or not 0 < value < 1e9 or (whole and value != int(value)):
        raise refused(f"{CONFIG}: {field} must be a positive number, not {_shown(value)}.")
    return float(value)


def _patterns(raw: Mapping[str, Any], field: str, *, whole: bool = False) -> dict[str, float]:
    """The values by (the end of) a module's name; of regular expressions, only those that are a name."""
    given = raw.get(field) or {}
    if not isinstance(given, dict):
        raise refused(f"{CONFIG}: {field} must be an object.")
    for pattern in given:
        if not _PATTERN.fullmatch(pattern):
            raise refused(
                f"{CONFIG}: {field} has the pattern {_shown(pattern)}; only modules' names are supported."
            )
    return {
        pattern.replace("\\", "").removesuffix("$"): _positive(given, pattern, whole=whole)
        for pattern in given
    }


def _changes(
    file: SafetensorsFile, shapes: Mapping[str, tuple[int, int]], scaling: Scaling, max_rank: int
) -> Changes:
    halves: dict[str, dict[str, str]] = {}
    for key in file.entries:
        match = _KEY.fullmatch(key)
        if match is None or match["module"] not in shapes:
            raise refused(_foreign(key, match["module"] if match else ""))
        if match["part"] in halves.setdefault(match["module"], {}):
            raise refused(f"the adapter holds lora_{match['part']} of {match['module']} twice.")
        halves[match["module"]][match["part"]] = key
    if not halves:
        raise refused("the adapter holds no tensors.")
    for module, parts in halves.items():
        _check(file, module, parts, shapes[module], scaling.of(module)[0], max_rank)
    return {module: _read(file, parts, scaling.of(module)[1]) for module, parts in halves.items()}


def _check(
    file: SafetensorsFile,
    module: str,
    parts: dict[str, str],
    shape: tuple[int, int],
    rank: int,
    max_rank: int,
) -> None:
    if len(parts) < 2:
        raise refused(f"the adapter holds only lora_{next(iter(parts))} of {module}.")
    if rank > max_rank:
        raise refused(f"the adapter has rank {rank} at {module}, but --max-lora-rank is {max_rank}.")
    n, k = shape
    for part, wanted in (("A", (rank, k)), ("B", (n, rank))):
        entry = file.entries[parts[part]]
        if entry.shape != wanted:
            raise refused(
                f"lora_{part} of {module} has the shape {list(entry.shape)}, but the model and the adapter's"
                f" configuration ask for {list(wanted)}."
            )
        if entry.dtype not in _FLOATS:
            raise refused(f"lora_{part} of {module} has the dtype {entry.dtype}, which is not supported.")


def _read(file: SafetensorsFile, parts: dict[str, str], scale: float) -> LowRank:
    down, up = (file.read(parts[part]).float() for part in "AB")
    if not (down.isfinite().all() and up.isfinite().all()):
        raise refused(f"the adapter's tensors {parts['A']!r} and its like hold numbers that are not finite.")
    return LowRank(down, up, scale)


def _foreign(key: str, module: str) -> str:
    if "embed_tokens" in key or "lora_embedding" in key or "lm_head" in key:
        return f"the adapter changes embeddings or the output head ({_shown(key)}), which is not supported."
    if "magnitude_vector" in key:
        return f"the adapter is a DoRA adapter ({_shown(key)}), which is not supported."
    if module:
        return (
            f"the adapter changes {_shown(module)}, which the model does not have or no adapter may change."
        )
    return f"the adapter holds {_shown(key)}, which is neither lora_A nor lora_B of a module."


def _shown(value: object) -> str:
    return repr(value)[:200]


class ModelShelf:
    """`gpu.lora.table.Shelf` of a model."""

    def __init__(
        self, slots: LoraSlots | None, max_rank: int, moved: Callable[[], None] = lambda: None
    ) -> None:
        """slots: of the model, None for one that takes no adapters. moved: is called when what lies in them
        has moved in memory."""
        self._slots, self._max_rank, self._moved = slots, max_rank, moved

    def read(self, adapter: Adapter) -> tuple[Any, str]:
        """See `Shelf.read`."""
        if self._slots is None:
            raise refused("adapters need a model of the Llama, Mistral, Qwen2 or Qwen3 family.")
        changes, digest = read_adapter(adapter, self._slots.shapes, self._max_rank)
        return self._slots.prepare(changes), digest

    def reserve(self, slots: int, adapters: Sequence[Any]) -> None:
        """See `Shelf.reserve`."""
        if self._slots is not None and self._slots.reserve(slots, adapters):
            self._moved()

    def put(self, slot: int, prepared: Any) -> None:
        """See `Shelf.put`."""
        assert self._slots is not None
        self._slots.put(slot, prepared)

    def clear(self, slot: int) -> None:
        """See `Shelf.clear`."""
        if self._slots is not None:
            self._slots.clear(slot)
