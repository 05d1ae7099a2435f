"""Rotary position embedding: the frequencies of its published variants, and their application.

Half-split layout (dimension i pairs with i + dim/2), as Hugging Face checkpoints store it. Sources:
RoFormer (https://arxiv.org/abs/2104.09864), position interpolation (https://arxiv.org/abs/2306.15595), YaRN
(https://arxiv.org/abs/2309.00071), and Llama 3.1's piecewise scaling.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from protocols.errors import StartError

Parameters = Mapping[str, Any]


def rope_parameters(config: Parameters) -> dict[str, Any]:
    """The RoPE section of a config.json in one spelling, whichever of the two it uses:
    `rope_parameters` (transformers 5) or `rope_scaling` beside `rope_theta` (before)."""
    section = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(section, dict) or any(isinstance(value, dict) for value in section.values()):
        raise StartError("config.json: a RoPE section for each layer type is not supported.")
    parameters = dict(section)
    parameters["rope_type"] = parameters.get("rope_type") or parameters.pop("type", None) or "default"
    if parameters.get("rope_theta") is None:
        parameters["rope_theta"] = config.get("rope_theta") or 10_000.0
    limit = config.get("original_max_position_embeddings") or parameters.get(
        "original_max_position_embeddings"
    )
    parameters["original_max_position_embeddings"] = limit or config["max_position_embeddings"]
    if parameters["rope_type"] == "yarn" and parameters.get("factor") is None:
        parameters["factor"] = config["max_position_embeddings"] / (
            limit or config["max_position_embeddings"]
        )
    return parameters


def frequencies(parameters: Parameters, dim: int) -> tuple[Tensor, float]:
    """Angles for each position and pair, float32 [dim / 2], and the factor on cosine and sine.

    "dynamic" starts to differ from the default past `max_position_embeddings`, where no sequence goes.
    "longrope" depends on the length within it, which would change keys that are in the pages already.
    """
    theta = float(parameters["rope_theta"])
    plain = 1.0 / theta ** (torch.arange(0, dim, 2, dtype=torch.float32) / dim)
    match parameters["rope_type"]:
        case "default" | "dynamic":
            return plain, 1.0
        case "linear":
            return plain / _number(parameters, "factor"), 1.0
        case "llama3":
            return _llama3(plain, parameters), 1.0
        case "yarn":
            return _yarn(plain, theta, dim, parameters)
        case other:
            raise StartError(f"config.json: RoPE variant {other!r} is not supported.")


def _number(parameters: Parameters, name: str) -> float:
    value = parameters.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
        raise StartError(f"config.json: RoPE parameter {name!r} must be a positive number.")
    return float(value)


def _llama3(plain: Tensor, parameters: Parameters) -> Tensor:
    """Long wavelengths are stretched by `factor`, short ones kept, those between interpolated."""
    factor = _number(parameters, "factor")
    low, high = _number(parameters, "low_freq_factor"), _number(parameters, "high_freq_factor")
    turns = parameters["original_max_position_embeddings"] * plain / (2 * math.pi)
    smooth = ((turns - low) / (high - low)).clamp(0, 1)
    return (1 - smooth) * plain / factor + smooth * plain


def _yarn(plain: Tensor, theta: float, dim: int, parameters: Parameters) -> tuple[Tensor, float]:
    """Interpolate slow dimensions, keep fast ones, a ramp between; attention is tempered by a factor."""
    factor = _number(parameters, "factor")
    original = parameters["original_max_position_embeddings"]

    def dimension(rotations: float) -> float:
        return dim * math.log(original / (rotations * 2 * math.pi)) / (2 * math.log(theta))

    low = dimension(parameters.get("beta_fast") or 32)
    high = dimension(parameters.get("beta_slow") or 1)
    if parameters.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    ramp = ((torch.arange(dim // 2, dtype=torch.float32) - low) / max(high - low, 0.001)).clamp(0, 1)
    return plain / factor * ramp + plain * (1 - ramp), _yarn_attention_factor(factor, parameters)


def _yarn_attention_factor(factor: float, parameters: Parameters) -> float:
    if parameters.get("attention_factor") is not None:
        return float(parameters["attention_factor"])

    def temper(scale: float) -> float:
        return 0.1 * scale * math.log(factor) + 1.0 if factor > 1 else 1.0

    mscale, all_dim = parameters.get("mscale"), parameters.get("mscale_all_dim")
    return temper(mscale) / temper(all_dim) if mscale and all_dim else temper(1.0)


class Rotary:
    """Rotates queries and keys by their positions."""

    def __init__(self, parameters: Parameters, dim: int, dtype: torch.dtype, device: torch.device) -> None:
        """`dim`: numbers of a head, all of which turn. See `frequencies`."""
        angles, factor = frequencies(parameters, dim)
        self._angles = torch.cat((angles, angles)).to(device)
        # On the CPU whatever the device: arithmetic on torch's meta device imports its compiler, for seconds.
        sign = torch.ones(dim)
        sign[: dim // 2] = -1
        self._cos_factor, self._sin_factor = factor, (sign * factor).to(device)
        self._half, self._dtype = dim // 2, dtype

    def tables(self, context: int) -> tuple[Tensor, Tensor]:
        """Cosine and sine of positions 0 .. context - 1, float32 [context, dim / 2] each."""
        positions = torch.arange(context, dtype=torch.float32, device=self._angles.device)
        angles = positions[:, None] * self._angles[: self._half]
        return angles.cos() * self._cos_factor, angles.sin() * self._cos_factor

    def turn(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Cosine and signed sine for int64 positions [T]: [T, 1, dim] each, once a step."""
        angles = positions[:, None, None].float() * self._angles
        cos, sin = angles.cos() * self._cos_factor, angles.sin() * self._sin_factor
        return cos.to(self._dtype), sin.to(self._dtype)

    def apply(self, x: Tensor, turned: tuple[Tensor, Tensor]) -> Tensor:
        """Rotate [T, heads, dim]. Rolling by half swaps the pairs; the sign is in the sine."""
        cos, sin = turned
        return torch.addcmul(x * cos, x.roll(self._half, -1), sin)
