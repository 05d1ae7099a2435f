"""How many characters a token can stand for at most. A text that is too long by that measure can be refused
without encoding it.

This is known only of tokenizers that keep every character: no normalizer or pre-tokenizer drops any, no
unknown token stands for a run of them, no added token swallows the blanks beside it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from tokenizers import Tokenizer, pre_tokenizers

_KEEPING_NORMALIZERS = frozenset({"Prepend", "ByteLevel", "Replace", "NFC"})
_KEEPING_PRE_TOKENIZERS = frozenset({"ByteLevel", "Metaspace", "Split", "Digits", "Punctuation"})
_COMPOSED = 4
"""Characters that NFC makes one of at most."""


def longest_token(tokenizer: Tokenizer) -> int | None:
    """Characters of text that one token stands for at most; None where any number may vanish."""
    added = tokenizer.get_added_tokens_decoder().values()
    if (
        not all(_keeps(part, _KEEPING_NORMALIZERS) for part in _parts(tokenizer.normalizer))
        or not all(_keeps(part, _KEEPING_PRE_TOKENIZERS) for part in _parts(tokenizer.pre_tokenizer))
        or any(token.lstrip or token.rstrip for token in added)
    ):
        return None
    vocabulary = tokenizer.get_vocab()
    if not _knows_every_character(tokenizer, vocabulary):
        return None
    composed = any(part["type"] == "NFC" for part in _parts(tokenizer.normalizer))
    return max(map(len, vocabulary)) * (_COMPOSED if composed else 1)


def _parts(component: Any) -> Iterator[dict[str, Any]]:
    """The serialised parts of a normalizer or pre-tokenizer, none of None."""
    states = [json.loads(component.__getstate__())] if component is not None else []
    while states:
        state = states.pop()
        inner = state.get("normalizers") or state.get("pretokenizers")
        if inner:
            states += inner
        elif state["type"] != "Sequence":
            yield state


def _keeps(part: dict[str, Any], kinds: frozenset[str]) -> bool:
    if part["type"] == "Replace":
        pattern = part["pattern"].get("String")
        return pattern is not None and len(part["content"]) >= len(pattern)
    return part["type"] in kinds and part.get("behavior") != "Removed"


def _knows_every_character(tokenizer: Tokenizer, vocabulary: dict[str, int]) -> bool:
    """Whether no unknown token can stand for a run of characters, and none is left out."""
    model = tokenizer.model
    if type(model).__name__ != "BPE":
        return False
    splits = (*_parts(tokenizer.normalizer), *_parts(tokenizer.pre_tokenizer))
    if any(part["type"] == "ByteLevel" for part in splits):
        return vocabulary.keys() >= set(pre_tokenizers.ByteLevel.alphabet())
    return bool(model.byte_fallback) or (model.unk_token is not None and not model.fuse_unk)
