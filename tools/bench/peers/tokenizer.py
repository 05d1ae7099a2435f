"""A tokenizer of any size for models with random weights: byte-level BPE over made-up words.

The vocabulary is two special tokens, the 256 bytes, then words of two, three and four letters, each made by
one merge of the word before its last letter and that letter. Every engine that reads Hugging Face or
GGUF tokenizers accepts it, and its words are readable text. Digits never merge, so a text of n digits has
exactly n tokens.
"""

from __future__ import annotations

import itertools
import json
import pathlib
import string
from collections.abc import Iterator

from tokenizers import Tokenizer, decoders, models, pre_tokenizers

SPECIAL = ("<|endoftext|>", "<|im_end|>")
FIRST_WORD = len(SPECIAL) + 256
"""The ids from here on are words."""
_TEMPLATE = "{% for message in messages %}{{ message.content }}{% endfor %}"
"""A conversation is the text of its messages alone, so that its length is known."""


def words() -> Iterator[tuple[str, str]]:
    """Merges: a word without its last letter, and that letter."""
    for size in (1, 2, 3):
        for head in itertools.product(string.ascii_lowercase, repeat=size):
            for last in string.ascii_lowercase:
                yield "".join(head), last


def build(size: int) -> Tokenizer:
    """A tokenizer of `size` tokens (at most 475,512)."""
    merges = list(itertools.islice(words(), size - FIRST_WORD))
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    entries = [*SPECIAL, *alphabet, *(head + last for head, last in merges)]
    if len(entries) != size:
        raise ValueError(f"a vocabulary may have {FIRST_WORD} to {len(entries)} tokens, not {size}")
    vocabulary = {text: index for index, text in enumerate(entries)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(SPECIAL))
    return tokenizer


def save(size: int, context: int, folder: pathlib.Path) -> None:
    """Write `tokenizer.json` and `tokenizer_config.json`."""
    build(size).save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": SPECIAL[0],
        "eos_token": SPECIAL[1],
        "pad_token": SPECIAL[0],
        "add_bos_token": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": context,
        "chat_template": _TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
