"""What the tests of the actor's core share: a config, a ledger, requests, and a client that joins rows."""

from __future__ import annotations

import functools
import pathlib
from typing import Any

import msgspec
import structlog
from tokenizers import Tokenizer

from actors.tokenizer.codec import Codec
from actors.tokenizer.core import Core
from actors.tokenizer.template import ChatTemplate
from protocols.config import Config, ModelCard
from protocols.ledger import Layout
from protocols.messages import Deltas, Generate, TextLogprob, TextRow
from protocols.request import ChatPrompt, Finish, OutputOptions, Prompt, TextPrompt, Usage
from protocols.sampling import SamplingParams
from runtime.ledger import Ledger
from tests.actors.tokenizer import builders, templates

CONTEXT = 200


@functools.cache
def codec_of(kind: str) -> Codec:
    tokenizer: Tokenizer = builders.EXACT[kind]()
    special = {"bos_token": builders.BOS, "eos_token": builders.EOS}
    return Codec(tokenizer, {k: v for k, v in special.items() if tokenizer.token_to_id(v) is not None})


@functools.cache
def chat_template() -> ChatTemplate:
    return ChatTemplate({"default": templates.CHATML}, {})


def config_of(codec: Codec, path: pathlib.Path | str = "", **options: Any) -> Config:
    size = codec.pieces.tokenizer.get_vocab_size()
    card = ModelCard("m", str(path), "LlamaForCausalLM", CONTEXT, size, eos=(codec.eos or 0,))
    return Config(model=card, max_open=16, **options)


def new_ledger(*, tokens: int = CONTEXT, request_bytes: int = 1 << 16) -> Ledger:
    return Ledger.create(Layout(16, tokens, request_bytes, 1 << 18))


def core_of(
    ledger: Ledger,
    kind: str = "byte_level",
    *,
    index: int = 0,
    **options: Any,
) -> Core:
    codec = codec_of(kind)
    log = structlog.get_logger("test")
    return Core(config_of(codec, **options), index, codec, ledger, log)


def rendered(prompt: Prompt) -> str:
    """The text of a chat, as a helper of the tokenizer makes it."""
    return chat_template().render(prompt) if isinstance(prompt, ChatPrompt) else ""


def generate(
    ledger: Ledger,
    prompt: Prompt | str = "Hello",
    *,
    n: int = 1,
    origin: int = 0,
    output: OutputOptions | None = None,
    **sampling: Any,
) -> Generate:
    """A request that has claimed its slots, as a frontend makes it."""
    rids = tuple(claim(ledger) for _ in range(n))
    prompt = TextPrompt(prompt) if isinstance(prompt, str) else prompt
    return Generate(
        rids, origin, prompt, SamplingParams(seed=1, **sampling), output or OutputOptions(), trace="t"
    )


def claim(ledger: Ledger) -> int:
    rid = ledger.claim(0)
    assert rid is not None
    return rid


def chat(text: str, *, continue_final: bool = False) -> ChatPrompt:
    return ChatPrompt(msgspec.json.encode([{"role": "user", "content": text}]), continue_final=continue_final)


class Client:
    """Joins the rows of one choice as a frontend does; AssertionError where something is missing."""

    def __init__(self) -> None:
        self.text = ""
        self.tokens = 0
        self.ids: list[int] = []
        self.logprobs: list[TextLogprob] = []
        self.prompt_ids: list[int] = []
        self.prompt_logprobs: list[TextLogprob] = []
        self.finish = Finish.NONE
        self.stop: str | int | None = None
        self.usage: list[Usage] = []
        self.error: Any = None

    def take(self, row: TextRow) -> None:
        if self.finish:
            return
        assert row.offset <= len(self.text), "text was lost"
        seen = len(self.text) - row.offset
        assert self.text[row.offset :].startswith(row.text[:seen]), "the same place, another text"
        self.text += row.text[seen:]
        if not row.tokens and not row.finish:
            assert row.first_token <= len(self.prompt_ids) or not row.token_ids, "ids were lost"
            self.prompt_ids += row.token_ids[len(self.prompt_ids) - row.first_token :]
            self.prompt_logprobs += row.logprobs[len(self.prompt_logprobs) - row.first_token :]
            return
        assert row.first_token <= len(self.ids) or not row.token_ids, "ids were lost"
        self.ids += row.token_ids[len(self.ids) - row.first_token :] if row.token_ids else ()
        known = len(self.logprobs) - row.first_token
        self.logprobs += row.logprobs[known:] if row.logprobs else ()
        self.tokens = max(self.tokens, row.tokens)
        self.finish, self.stop, self.error = row.finish, row.stop, row.error
        if row.usage is not None:
            self.usage.append(row.usage)

    def take_all(self, outgoing: Any) -> None:
        for _, message in outgoing:
            if isinstance(message, Deltas):
                for row in message.rows:
                    self.take(row)
