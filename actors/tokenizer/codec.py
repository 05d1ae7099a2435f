"""The model's tokenizer: text to ids and back.

`tokenizer.json` is read with the `tokenizers` library alone. A directory that has only an older
format is converted by `transformers`, imported for that purpose and never trusting remote code.
"""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from actors.tokenizer.detokenizer import REPLACEMENT, TextStream, open_stream
from actors.tokenizer.extent import longest_token
from actors.tokenizer.model_files import read_special_tokens
from actors.tokenizer.pieces import Joint, Pieces
from protocols.errors import StartError, TroupeError, UserError

Ids = npt.NDArray[np.int32]

_OLDER_FORMATS = ("*.model", "vocab.json", "vocab.txt", "*.tiktoken", "tekken.json", "sentencepiece.*")


class CodecError(TroupeError):
    """The tokenizer library failed on a text: answered with a 500, and logged."""


class Names(dict[int, tuple[str, bytes]]):
    """Token id -> its text and its exact bytes, filled as ids are looked up."""

    def __init__(self, pieces: Pieces) -> None:
        super().__init__()
        self._pieces = pieces

    def __missing__(self, token: int) -> tuple[str, bytes]:
        data = self._pieces.token_bytes(token)
        name = self[token] = data.decode("utf-8", "replace"), data
        return name


class Codec:
    """One tokenizer. Safe to use from several threads.

    special_tokens: named ones, for the chat template. eos: id of the tokenizer's own EOS token, or None.
    names: id -> text and exact bytes of a single token.
    """

    def __init__(self, tokenizer: Tokenizer, special_tokens: dict[str, str]) -> None:
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self.special_tokens = special_tokens
        self.pieces = Pieces(_with_special(tokenizer, special_tokens))
        self._tokenizer = self.pieces.tokenizer
        self.eos = self._id("eos_token")
        self.names = Names(self.pieces)

    def encode(self, text: str, *, add_special: bool) -> Ids:
        """Ids of `text`; with the special tokens of the tokenizer's post-processor if `add_special`.

        UserError for text that is not Unicode; CodecError where the library fails.
        """
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise UserError(
                "the prompt holds a lone surrogate, which is not text.", param="prompt"
            ) from error
        try:
            ids = self._tokenizer.encode(text, add_special_tokens=add_special).ids
        except BaseException as error:
            raise _codec_error(error) from error
        return np.asarray(ids, dtype="<i4")

    @functools.cached_property
    def longest(self) -> int | None:
        """Characters that one token stands for at most; None where that cannot be said."""
        return longest_token(self._tokenizer)

    def decode(self, ids: Sequence[int], *, skip_special: bool) -> str:
        """The text of a whole sequence."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=skip_special))

    def entries(self, ids: Sequence[int]) -> tuple[str, ...]:
        """Each id's entry in the vocabulary, "" for ids that it does not have."""
        return tuple([self._tokenizer.id_to_token(token) or "" for token in ids])

    def prompt_text(self, ids: Sequence[int], *, skip_special: bool) -> str:
        """The text of a prompt to be echoed: without a character that only the output may finish."""
        text = self.decode(ids, skip_special=skip_special)
        unfinished = open_stream(self.pieces, ids, skip_special=skip_special).pending
        shown_as = 1 if self.pieces.shape.joint is Joint.BYTES else len(unfinished)
        return text.removesuffix(REPLACEMENT * shown_as) if unfinished else text

    def stream(self, prompt: Sequence[int], *, skip_special: bool) -> TextStream:
        """Incremental decoding of the output that follows `prompt`."""
        return open_stream(self.pieces, prompt, skip_special=skip_special)

    @property
    def special_texts(self) -> frozenset[str]:
        """What the special tokens are called."""
        return self.pieces.special_texts

    @property
    def added(self) -> dict[str, int]:
        """Tokens beside the model's own, by their texts."""
        tokens = self._tokenizer.get_added_tokens_decoder()
        return {token.content: number for number, token in tokens.items()}

    def serialised(self) -> str:
        """The tokenizer as the text of a `tokenizer.json`."""
        return str(self._tokenizer.to_str())

    def _id(self, name: str) -> int | None:
        text = self.special_tokens.get(name)
        found: int | None = None if text is None else self._tokenizer.token_to_id(text)
        return found


def _with_special(tokenizer: Tokenizer, special_tokens: dict[str, str]) -> Tokenizer:
    """Mark the named special tokens that the vocabulary knows only as ordinary ones."""
    special = {entry.content for entry in tokenizer.get_added_tokens_decoder().values() if entry.special}
    missing = [
        text
        for text in special_tokens.values()
        if text not in special and tokenizer.token_to_id(text) is not None
    ]
    tokenizer.add_special_tokens(missing)
    return tokenizer


def _codec_error(error: BaseException) -> BaseException:
    """What to raise for an error of the library: CodecError, also for a panic of its Rust code, which derives
    from BaseException directly; a KeyboardInterrupt stays one."""
    if isinstance(error, Exception) or type(error).__name__ == "PanicException":
        return CodecError(f"the tokenizer failed: {type(error).__name__}")
    return error


def load_codec(directory: pathlib.Path) -> Codec:
    """Read the tokenizer of a model directory; StartError with a sentence where there is none."""
    path = directory / "tokenizer.json"
    tokenizer = _read(path) if path.is_file() else _convert(directory)
    return Codec(tokenizer, read_special_tokens(directory))


def _read(path: pathlib.Path) -> Any:
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises plain Exception
        raise StartError(f"{path} is not a tokenizer that this version can read: {error}.") from error


def _convert(directory: pathlib.Path) -> Any:
    if not any(path for pattern in _OLDER_FORMATS for path in directory.glob(pattern)):
        raise StartError(f"{directory} holds no tokenizer (tokenizer.json, or an older format).")
    try:
        return _backend(directory)
    except Exception as error:
        raise StartError(f"the tokenizer in {directory} cannot be converted: {error}.") from error


def _backend(directory: pathlib.Path) -> Any:
    from transformers import AutoTokenizer

    found = AutoTokenizer.from_pretrained(str(directory), trust_remote_code=False, local_files_only=True)
    backend = getattr(found, "backend_tokenizer", None)
    if not isinstance(backend, Tokenizer):
        raise TypeError(f"{type(found).__name__} has no fast form")
    return backend
