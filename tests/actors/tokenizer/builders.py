"""Small tokenizers of every kind, trained here, and model directories around them."""

from __future__ import annotations

import functools
import json
import pathlib
from typing import Any

from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

BOS, EOS, PAD = "<s>", "</s>", "<pad>"
CORPUS = [
    "Hello world, this is a small text about nothing in particular.",
    "The quick brown fox jumps over the lazy dog; the dog sleeps on.",
    "def add(a, b):\n    return a + b\n\n\nprint(add(1, 2))\n",
    "Ünïcödé wörds, naïve café, Größe, 12345 and 67890.",
    "日本語のテキスト。 Привет мир! שלום 👩‍👩‍👧 😀 and so on  with   spaces",
] * 4


@functools.cache
def byte_level() -> Tokenizer:
    """GPT-2's kind."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=[BOS, EOS, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_tokens([AddedToken("<tool_call>", special=False), AddedToken("né ŋ", special=False)])
    return tokenizer


def _metaspace_model(*, fallback: bool) -> Tokenizer:
    """A SentencePiece-like BPE; its vocabulary leaves out rare characters so that bytes must stand in."""
    seed = Tokenizer(models.BPE(unk_token="<unk>"))
    seed.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<unk>", BOS, EOS, PAD], limit_alphabet=70, show_progress=False
    )
    seed.train_from_iterator(CORPUS, trainer)
    state = json.loads(seed.to_str())
    vocab: dict[str, int] = state["model"]["vocab"]
    for byte in range(256):
        vocab.setdefault(f"<0x{byte:02X}>", len(vocab))
    state["model"] |= {"byte_fallback": fallback, "fuse_unk": True}
    return Tokenizer.from_str(json.dumps(state))


def _with_bos(tokenizer: Tokenizer) -> Tokenizer:
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
    )
    return tokenizer


@functools.cache
def llama() -> Tokenizer:
    """Llama 2's kind: byte fallback, one leading space stripped, BOS in front."""
    tokenizer = _metaspace_model(fallback=True)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return _with_bos(tokenizer)


@functools.cache
def gemma() -> Tokenizer:
    """Gemma's kind: byte fallback, no stripping."""
    tokenizer = _metaspace_model(fallback=True)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    return _with_bos(tokenizer)


@functools.cache
def metaspace() -> Tokenizer:
    """T5's kind: the Metaspace decoder drops the space of the first piece."""
    tokenizer = _metaspace_model(fallback=False)
    tokenizer.decoder = decoders.Metaspace()
    return tokenizer


@functools.cache
def word_piece() -> Tokenizer:
    """BERT's kind."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    special = ["[UNK]", "[CLS]", "[SEP]"]
    trainer = trainers.WordPieceTrainer(vocab_size=300, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


@functools.cache
def bare() -> Tokenizer:
    """No decoder at all: tokens are joined by spaces."""
    tokenizer = Tokenizer(models.WordLevel(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.WordLevelTrainer(special_tokens=["<unk>", BOS], show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


@functools.cache
def end_of_word() -> Tokenizer:
    """GPT-1's kind: only whole sequences have a text."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", end_of_word_suffix="</w>"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.BPEDecoder()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<unk>", BOS], end_of_word_suffix="</w>", show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


EXACT = {
    "byte_level": byte_level,
    "llama": llama,
    "gemma": gemma,
    "metaspace": metaspace,
    "word_piece": word_piece,
    "bare": bare,
}


def write_model(
    directory: pathlib.Path, tokenizer: Tokenizer, *, template: str | None = None, **config: Any
) -> pathlib.Path:
    """A directory with tokenizer.json and tokenizer_config.json (the parts that this actor reads)."""
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(directory / "tokenizer.json"))
    fields: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast"}
    if tokenizer.token_to_id(BOS) is not None:
        fields["bos_token"] = BOS
    if tokenizer.token_to_id(EOS) is not None:
        fields["eos_token"] = EOS
    if template is not None:
        fields["chat_template"] = template
    (directory / "tokenizer_config.json").write_text(json.dumps(fields | config))
    return directory
