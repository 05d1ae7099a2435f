"""The fields that shape a generation, shared by the three endpoints, and those that are not served.

A field that would change the output and is not served is refused by name: nothing a client
asked for is dropped silently. Fields of billing, storage or telemetry are ignored.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

from protocols.errors import UserError

Int = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]
"""A JSON integer that fits 64 bits; the width of the field's own range is checked later."""


class StreamOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What a stream carries besides text."""

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


class GenerationFields(msgspec.Struct, kw_only=True):
    """Fields of every request. None everywhere means the default of `SamplingParams`."""

    stream: bool | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: Int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    seed: Int | None = None
    min_tokens: Int | None = None
    ignore_eos: bool | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[Int] | None = None
    include_stop_str_in_output: bool | None = None
    skip_special_tokens: bool | None = None
    logit_bias: dict[Int, float] | None = None
    cache_salt: str | None = None
    priority: Int | None = None
    return_token_ids: bool | None = None
    prompt_logprobs: Int | None = None
    truncate_prompt_tokens: Int | None = None
    user: str | None = None

    structured_outputs: Any = None
    guided_json: Any = None
    guided_regex: Any = None
    guided_choice: Any = None
    guided_grammar: Any = None
    json_schema: Any = None
    regex: Any = None
    ebnf: Any = None
    structural_tag: Any = None
    bad_words: Any = None
    allowed_token_ids: Any = None
    logits_processors: Any = None
    custom_logit_processor: Any = None
    custom_params: Any = None
    use_beam_search: Any = None
    length_penalty: Any = None
    spaces_between_special_tokens: Any = None
    lora_path: Any = None
    chat_template: Any = None
    documents: Any = None


class ChoicesFields(GenerationFields, kw_only=True):
    """Fields that chat and completions share: those of answers with several choices."""

    model: str
    stream_options: StreamOptions | None = None
    n: Int | None = None
    best_of: Int | None = None
    max_tokens: Int | None = None


NEUTRAL: dict[str, tuple[Any, ...]] = {
    "bad_words": ([],),
    "allowed_token_ids": (),
    "logits_processors": ([],),
    "custom_logit_processor": (),
    "custom_params": (),
    "use_beam_search": (False,),
    "length_penalty": (1.0,),
    "spaces_between_special_tokens": (True,),
    "chat_template": (),
    "documents": (),
}
"""Fields that every endpoint refuses -> the values besides null that change nothing."""


def refuse_unserved(request: msgspec.Struct, neutral: dict[str, tuple[Any, ...]]) -> None:
    """Raise UserError (400, code `unsupported`) for the first field that is set to more than nothing."""
    for name, harmless in neutral.items():
        value = getattr(request, name)
        if value is not None and value not in harmless:
            raise UserError(f"{name} is not supported.", param=name, code="unsupported")
