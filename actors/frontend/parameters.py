"""Request fields to the values that travel down: sampling, output options, a job's other facts."""

from __future__ import annotations

from typing import Any

import msgspec

from actors.frontend.answer_format import AnswerFormat
from actors.frontend.jobs import Job
from protocols.adapters import Adapter
from protocols.errors import ErrorBody, UserError
from protocols.grammar import Rules
from protocols.openai import generation
from protocols.openai.generation import GenerationFields, refuse_unserved
from protocols.request import MAX_STOP_CHARS, MAX_STOPS, OutputOptions, Prompt
from protocols.sampling import SamplingParams, validate

MAX_SALT = 256
_PRIORITIES = 2**31
_FREE = Rules()
_PLAIN = AnswerFormat()


def check_served(request: GenerationFields, neutral: dict[str, tuple[Any, ...]]) -> None:
    """Refuse fields that would change the output and are not served."""
    refuse_unserved(request, generation.NEUTRAL)
    refuse_unserved(request, neutral)


def sampling(
    request: GenerationFields,
    vocab_size: int,
    *,
    max_tokens: int | None,
    logprobs: int | None,
    names: dict[str, str],
    prompt_logprobs: int | None = None,
    least: int = 1,
) -> SamplingParams:
    """The sampling of a request, validated; raises UserError. names: what the endpoint calls those of our
    fields that have another name there. least: of max_tokens."""
    plain = SamplingParams()
    top_k = request.top_k or 0
    params = SamplingParams(
        temperature=_or(request.temperature, plain.temperature),
        top_p=_or(request.top_p, plain.top_p),
        top_k=0 if top_k == -1 else top_k,
        min_p=_or(request.min_p, plain.min_p),
        repetition_penalty=_or(request.repetition_penalty, plain.repetition_penalty),
        presence_penalty=_or(request.presence_penalty, plain.presence_penalty),
        frequency_penalty=_or(request.frequency_penalty, plain.frequency_penalty),
        seed=request.seed,
        max_tokens=max_tokens,
        min_tokens=request.min_tokens or 0,
        ignore_eos=bool(request.ignore_eos),
        stop_token_ids=tuple(request.stop_token_ids or ()),
        logit_bias=tuple((request.logit_bias or {}).items()),
        logprobs=logprobs,
        prompt_logprobs=prompt_logprobs,
    )
    try:
        validate(params, vocab_size, least=least)
    except UserError as error:
        raise _renamed(error.body, names) from error
    return params


def output_options(request: GenerationFields, *, echo: bool = False) -> OutputOptions:
    """What the tokenizer does with the text; raises UserError."""
    return OutputOptions(
        stop=_stops(request.stop),
        include_stop=bool(request.include_stop_str_in_output),
        skip_special=request.skip_special_tokens is not False,
        echo=echo,
        token_ids=bool(request.return_token_ids),
    )


def job(
    request: GenerationFields,
    prompts: tuple[Prompt, ...],
    vocab_size: int,
    *,
    max_tokens: int | None,
    logprobs: int | None,
    names: dict[str, str],
    trace: str,
    n: int = 1,
    echo: bool = False,
    prompt_logprobs: int | None = None,
    least: int = 1,
    default_tokens: int = 0,
    rules: Rules = _FREE,
    answer_format: AnswerFormat = _PLAIN,
    adapter: Adapter | None = None,
) -> Job:
    """The validated job of a request; raises UserError. logprobs and so on: see `sampling`."""
    params = sampling(
        request,
        vocab_size,
        max_tokens=max_tokens,
        logprobs=logprobs,
        names=names,
        prompt_logprobs=prompt_logprobs,
        least=least,
    )
    return Job(
        prompts,
        params,
        answer_format.adapted(output_options(request, echo=echo)),
        n,
        _priority(request),
        _salt(request),
        trace,
        default_tokens=default_tokens,
        truncate=_truncate(request),
        rules=rules,
        names=names,
        adapter=adapter,
    )


def top_logprobs(wanted: bool, top: int | None) -> int | None:
    """`SamplingParams.logprobs` for the endpoints that ask with two fields."""
    if not wanted:
        if top:
            raise UserError("top_logprobs may only be set with logprobs.", param="top_logprobs")
        return None
    return top or 0


def _priority(request: GenerationFields) -> int:
    priority = request.priority or 0
    if not -_PRIORITIES <= priority < _PRIORITIES:
        raise UserError("priority must fit 32 bits.", param="priority")
    return priority


def _salt(request: GenerationFields) -> str:
    salt = request.cache_salt or ""
    if len(salt) > MAX_SALT:
        raise UserError(f"cache_salt may have at most {MAX_SALT} characters.", param="cache_salt")
    return salt


def _truncate(request: GenerationFields) -> int:
    truncate = request.truncate_prompt_tokens or 0
    if truncate < -1 or request.truncate_prompt_tokens == 0:
        raise UserError(
            "truncate_prompt_tokens must be positive, or -1 for what fits.", param="truncate_prompt_tokens"
        )
    return truncate


def _stops(stop: str | list[str] | None) -> tuple[str, ...]:
    stops = (stop,) if isinstance(stop, str) else tuple(stop or ())
    if len(stops) > MAX_STOPS:
        raise UserError(f"stop may hold at most {MAX_STOPS} strings, not {len(stops)}.", param="stop")
    if not all(1 <= len(text) <= MAX_STOP_CHARS for text in stops):
        raise UserError(f"A stop string must have 1 to {MAX_STOP_CHARS} characters.", param="stop")
    return stops


def _renamed(body: ErrorBody, names: dict[str, str]) -> UserError:
    ours = body.param or ""
    theirs = names.get(ours, ours)
    message = body.message.replace(ours, theirs, 1)
    return UserError.from_body(msgspec.structs.replace(body, message=message, param=theirs))


def _or(value: float | None, default: float) -> float:
    return default if value is None else value
