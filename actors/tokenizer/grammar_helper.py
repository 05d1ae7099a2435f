"""The process that makes and checks grammars (see `helper_process`): asked what clients want of an answer, it
answers the grammar. Reading what a stranger wrote may take long, or kill a library."""

from __future__ import annotations

import sys

import msgspec
from tokenizers import Tokenizer

from actors.tokenizer import helper_process
from actors.tokenizer.codec import Codec
from actors.tokenizer.grammar import GrammarMaker
from actors.tokenizer.helper_process import Answer, Answerer
from protocols.config import Config
from protocols.errors import UserError
from protocols.grammar import Rules


class Language(msgspec.Struct, frozen=True):
    """A model's tokenizer, as the text of a `tokenizer.json`, its named special tokens, and the rest."""

    tokenizer: str
    special_tokens: dict[str, str]
    config: Config


class Wish(msgspec.Struct, frozen=True):
    """A question: what `GrammarMaker` takes."""

    rules: Rules
    thoughts: tuple[str, ...] = ()
    thinking: bool = False


def begin(data: bytes) -> Answerer:
    """What answers questions, made of an encoded Language."""
    language = msgspec.msgpack.decode(data, type=Language)
    codec = Codec(Tokenizer.from_str(language.tokenizer), language.special_tokens)
    maker = GrammarMaker(language.config, codec)
    maker.preload()
    decode = msgspec.msgpack.Decoder(Wish).decode
    return lambda question: _made(maker, decode(question))


def _made(maker: GrammarMaker, wish: Wish) -> Answer:
    try:
        return maker(wish.rules, wish.thoughts, thinking=wish.thinking)
    except UserError as error:
        return error.body


if __name__ == "__main__":
    helper_process.main(int(sys.argv[1]), "grammar_helper", begin)
