"""`/generate`: text or tokens in, text and tokens out, in the shapes of SGLang."""

from __future__ import annotations

from typing import Any

import msgspec

from protocols.openai.generation import Int

DEFAULT_MAX_TOKENS = 128
"""SGLang's default of this endpoint."""

LogprobEntry = tuple[float | None, int, str | None]
"""Log probability (None for the first token of a prompt), id, and text where asked for."""


class NativeSampling(msgspec.Struct, kw_only=True):
    """How to choose tokens. no_stop_trim: the stop string stays in the text."""

    max_new_tokens: Int | None = None
    min_new_tokens: Int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: Int | None = None
    min_p: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    repetition_penalty: float | None = None
    sampling_seed: Int | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[Int] | None = None
    ignore_eos: bool | None = None
    skip_special_tokens: bool | None = None
    no_stop_trim: bool | None = None
    logit_bias: dict[Int, float] | None = None
    n: Int | None = None

    json_schema: Any = None
    regex: str | None = None
    ebnf: str | None = None
    structural_tag: Any = None
    stop_regex: Any = None
    custom_params: Any = None
    spaces_between_special_tokens: Any = None


class SessionParams(msgspec.Struct, kw_only=True):
    """How a request goes on in a session. id: of the session. rid: of the request that it continues, null for
    none. offset: tokens of that which count. drop_previous_output: without its output. replace: what has
    continued it before is forgotten."""

    id: str | None = None
    rid: str | None = None
    offset: Int | None = None
    replace: bool | None = None
    drop_previous_output: bool | None = None


class NativeRequest(msgspec.Struct, kw_only=True):
    """Body of a generate request: `text` or `input_ids`, one or a list.

    logprob_start_len: the first token of the prompt whose logprob is told; -1 (the default) for none.
    """

    text: str | list[str] | None = None
    input_ids: list[Int | list[Int]] | None = None
    sampling_params: NativeSampling | None = None
    return_logprob: bool | None = None
    logprob_start_len: Int | None = None
    top_logprobs_num: Int | None = None
    return_text_in_logprobs: bool | None = None
    stream: bool | None = None
    priority: Int | None = None
    cache_salt: str | None = None
    session_params: SessionParams | None = None

    lora_path: Any = None
    lora_name: Any = None
    image_data: Any = None
    audio_data: Any = None
    input_embeds: Any = None
    return_hidden_states: Any = None
    custom_logit_processor: Any = None


NEUTRAL: dict[str, tuple[Any, ...]] = {
    "image_data": ([],),
    "audio_data": ([],),
    "input_embeds": (),
    "return_hidden_states": (False,),
    "custom_logit_processor": (),
}
SAMPLING_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "stop_regex": ([],),
    "custom_params": (),
    "spaces_between_special_tokens": (True,),
}
"""As `generation.NEUTRAL`."""


class NativeFinish(msgspec.Struct, kw_only=True, omit_defaults=True):
    """Why it ended. matched: the stop string or stop token; length: the tokens that it may have."""

    type: str
    matched: str | int | None = None
    length: int | None = None


class NativeMeta(msgspec.Struct, kw_only=True):
    """What is told beside the text. finish_reason: null while it goes on. weight_version: the last of those
    that made it."""

    id: str
    finish_reason: NativeFinish | None
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    weight_version: str | msgspec.UnsetType = msgspec.UNSET
    weight_versions: tuple[str, ...] | msgspec.UnsetType = msgspec.UNSET
    input_token_logprobs: list[LogprobEntry] | msgspec.UnsetType = msgspec.UNSET
    output_token_logprobs: list[LogprobEntry] | msgspec.UnsetType = msgspec.UNSET
    input_top_logprobs: list[list[LogprobEntry] | None] | msgspec.UnsetType = msgspec.UNSET
    output_top_logprobs: list[list[LogprobEntry] | None] | msgspec.UnsetType = msgspec.UNSET


class NativeAnswer(msgspec.Struct, kw_only=True):
    """One answer, or in a stream what there is of it so far. index: in a stream of several."""

    text: str
    output_ids: list[int]
    meta_info: NativeMeta
    index: int | msgspec.UnsetType = msgspec.UNSET
