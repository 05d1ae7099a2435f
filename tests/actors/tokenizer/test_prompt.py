"""From requests to ids and complete sampling, and every refusal on the way."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.tokenizer.codec import Codec, Ids
from actors.tokenizer.prompt import Prompted, Prompter
from protocols.config import ModelCard
from protocols.errors import ErrorBody, UserError
from protocols.messages import Generate
from protocols.request import OutputOptions, Prompt, TextPrompt, TokenPrompt
from protocols.sampling import SamplingParams
from tests.actors.tokenizer.parts import CONTEXT, chat, codec_of, rendered

VOCAB = 501
CARD = ModelCard("m", "", "LlamaForCausalLM", CONTEXT, VOCAB, eos=(7, 8))


def ask(
    prompt: Prompt,
    *,
    output: OutputOptions | None = None,
    card: ModelCard = CARD,
    default: int = 0,
    **sampling: object,
) -> Prompted:
    prompter = Prompter(card, codec_of("byte_level"))
    params = SamplingParams(**sampling)  # type: ignore[arg-type]
    message = Generate((1,), 0, prompt, params, output or OutputOptions(), default_tokens=default)
    return prompter(message, rendered(prompt))


def refusal(prompt: Prompt, **options: object) -> ErrorBody:
    with pytest.raises(UserError) as caught:
        ask(prompt, **options)  # type: ignore[arg-type]
    assert caught.value.body.status == 400
    return caught.value.body


def tokens(*ids: int) -> TokenPrompt:
    return TokenPrompt(np.asarray(ids, "<i4").tobytes())


def of_length(count: int) -> TokenPrompt:
    return tokens(*[5] * count)


def text_of(prompted: Prompted) -> str:
    ids = np.frombuffer(prompted.tokens, "<i4").tolist()
    return codec_of("byte_level").decode(ids, skip_special=False)


def test_every_kind_of_prompt() -> None:
    assert text_of(ask(TextPrompt("Hello"))) == "Hello"
    assert ask(tokens(3, 4)).tokens == tokens(3, 4).tokens
    assert text_of(ask(chat("Hi"))) == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert text_of(ask(chat("Hi", continue_final=True))) == "<|im_start|>user\nHi"


def test_sampling_is_completed() -> None:
    eos = codec_of("byte_level").eos
    sampling = ask(of_length(10), stop_token_ids=(9, 8)).sampling
    assert sampling.max_tokens == CONTEXT - 10
    assert sampling.stop_token_ids == (9, 8, 7, eos)
    assert ask(of_length(10), max_tokens=3).sampling.max_tokens == 3
    assert ask(of_length(10), ignore_eos=True, stop_token_ids=(9,)).sampling.stop_token_ids == (9,)


def test_an_eos_beyond_the_model_s_vocabulary_is_left_out() -> None:
    card = ModelCard("m", "", "LlamaForCausalLM", CONTEXT, 1, eos=(0, 5))
    assert ask(tokens(0), card=card).sampling.stop_token_ids == (0,)


@pytest.mark.parametrize("prompt", [TextPrompt(""), TokenPrompt(b"")])
def test_an_empty_prompt(prompt: Prompt) -> None:
    assert refusal(prompt).message == "the prompt is empty."


@pytest.mark.parametrize("bad", [-1, VOCAB, 2**31 - 1, -(2**31)])
def test_ids_outside_the_vocabulary(bad: int) -> None:
    assert refusal(tokens(1, bad)).message == (
        f"the prompt holds token {bad}, but the vocabulary has {VOCAB} tokens."
    )
    assert ask(tokens(0, VOCAB - 1)).tokens


def test_ids_that_are_no_ids() -> None:
    assert "not whole int32" in refusal(TokenPrompt(b"\x00\x00\x00")).message


def test_a_prompt_that_fills_the_context() -> None:
    assert ask(of_length(CONTEXT - 1)).sampling.max_tokens == 1
    for count in (CONTEXT, CONTEXT + 1):
        body = refusal(of_length(count))
        assert body.code == "context_length_exceeded"
        assert f"{CONTEXT} tokens" in body.message and f"{count} tokens" in body.message


def test_a_limit_that_exceeds_the_context() -> None:
    assert ask(of_length(10), max_tokens=CONTEXT - 10).sampling.max_tokens == CONTEXT - 10
    body = refusal(of_length(10), max_tokens=CONTEXT - 9)
    assert (body.code, body.param) == ("context_length_exceeded", "max_tokens")
    for number in (CONTEXT, CONTEXT + 1, 10, CONTEXT - 9):
        assert str(number) in body.message


def test_a_default_limit_is_clipped_to_the_context() -> None:
    assert ask(of_length(10), default=16).sampling.max_tokens == 16
    assert ask(of_length(CONTEXT - 3), default=16).sampling.max_tokens == 3
    assert ask(of_length(10), default=16, max_tokens=20).sampling.max_tokens == 20
    assert ask(of_length(10), default=16, min_tokens=18).sampling.max_tokens == 18
    assert refusal(of_length(CONTEXT - 3), default=16, max_tokens=16).param == "max_tokens"


def test_more_tokens_at_least_than_can_follow() -> None:
    assert refusal(of_length(CONTEXT - 5), min_tokens=6).param == "min_tokens"
    assert ask(of_length(CONTEXT - 5), min_tokens=5).sampling.max_tokens == 5


def test_stop_strings_are_checked() -> None:
    assert refusal(tokens(1), output=OutputOptions(stop=("",))).param == "stop"


@pytest.mark.parametrize("kind", ["byte_level", "llama", "gemma"])
def test_a_hopeless_prompt_is_refused_without_encoding_it(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    codec = codec_of(kind)
    assert codec.longest is not None
    prompter, most = Prompter(CARD, codec), codec.longest * CONTEXT
    encoded: list[int] = []

    def spy(text: str, *, add_special: bool) -> Ids:
        encoded.append(len(text))
        return Codec.encode(codec, text, add_special=add_special)

    monkeypatch.setattr(codec, "encode", spy)
    for count, expected in ((most, [most]), (most + 1, [])):
        message = Generate((1,), 0, TextPrompt("x" * count), SamplingParams(), OutputOptions())
        with pytest.raises(UserError, match="maximum context length is 200 tokens") as caught:
            prompter(message, "")
        assert (caught.value.body.code, encoded) == ("context_length_exceeded", expected)
        encoded.clear()
    assert not prompter.fits(message, "x" * (most + 1)) and not encoded
    cut = msgspec.structs.replace(message, truncate=5, sampling=SamplingParams(max_tokens=1))
    assert len(np.frombuffer(prompter(cut, "").tokens, "<i4")) == 5


@given(st.text(max_size=400), st.sampled_from(["byte_level", "llama", "gemma"]))
def test_no_tokens_say_more_than_they_can(text: str, kind: str) -> None:
    codec = codec_of(kind)
    assert codec.longest is not None
    assert len(text) <= len(codec.encode(text, add_special=False)) * codec.longest


@pytest.mark.parametrize("kind", ["metaspace", "word_piece", "bare"])
def test_of_tokenizers_that_drop_characters_nothing_is_said(kind: str) -> None:
    assert codec_of(kind).longest is None
