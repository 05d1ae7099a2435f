"""Which model class serves an architecture. Imports neither torch nor transformers: refusing is quick."""

from __future__ import annotations

import functools
import importlib.util
import pathlib
import re

from protocols.errors import StartError

NATIVE = frozenset(
    {
        "LlamaForCausalLM",
        "MistralForCausalLM",
        "Qwen2ForCausalLM",
        "Qwen3ForCausalLM",
        "Qwen3MoeForCausalLM",
    },
)
"""Architectures with an implementation of our own; others run through transformers."""

_CAUSAL = re.compile(r"MODEL_FOR_CAUSAL_LM_MAPPING_NAMES = OrderedDict\(\s*\[(.*?)\n\s*\]\s*\)", re.DOTALL)


@functools.cache
def known_to_transformers() -> frozenset[str]:
    """Causal language models of the installed transformers, read from its source text: importing it takes
    seconds. Empty when the text is not where it is expected, and then the import decides."""
    spec = importlib.util.find_spec("transformers")
    if spec is None or spec.origin is None:
        return frozenset()
    try:
        text = (pathlib.Path(spec.origin).parent / "models/auto/modeling_auto.py").read_text()
    except OSError:
        return frozenset()
    listing = _CAUSAL.search(text)
    return frozenset(re.findall(r'\(\s*"[^"]+",\s*"(\w+)"', listing[1])) if listing else frozenset()


def check_architecture(architecture: str) -> None:
    """StartError unless the architecture is native or a causal language model of transformers."""
    if architecture in NATIVE:
        return
    known = known_to_transformers()
    if known and architecture not in known:
        raise StartError(
            f"unsupported architecture {architecture}: it is neither built in nor a causal language "
            "model of the installed transformers."
        )
