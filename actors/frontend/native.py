"""`/generate`: text or tokens in, text and tokens out. A stream tells all that there is so far, each time."""

from __future__ import annotations

import dataclasses
import math

import msgspec

from actors.frontend import delivery, parameters, prompts, sessions
from actors.frontend.choices import MAX_CHOICES
from actors.frontend.jobs import Job
from actors.frontend.rules import rules_of
from actors.frontend.service import Service, new_id, read
from actors.frontend.sessions import Turn
from protocols.errors import ErrorBody, UserError
from protocols.messages import TextLogprob, TextRow
from protocols.openai import native
from protocols.openai.body import error_document
from protocols.openai.generation import GenerationFields, refuse_unserved
from protocols.openai.logprobs import finite
from protocols.openai.native import (
    DEFAULT_MAX_TOKENS,
    LogprobEntry,
    NativeAnswer,
    NativeFinish,
    NativeMeta,
    NativeRequest,
    NativeSampling,
)
from protocols.request import Finish, Prompt
from runtime.exchange import Exchange

_decoder = msgspec.json.Decoder(NativeRequest)
_NAMES = {
    "max_tokens": "max_new_tokens",
    "min_tokens": "min_new_tokens",
    "seed": "sampling_seed",
    "logprobs": "top_logprobs_num",
    "prompt_logprobs": "top_logprobs_num",
}


async def create(service: Service, exchange: Exchange) -> None:
    """Answer `POST /generate`."""
    request = await read(_decoder, await exchange.body())
    job = native_job(request, service, service.trace_of(exchange))
    turn = await sessions.begin(service, request)
    if turn is not None:
        job = dataclasses.replace(job, prompts=(turn.prompt,))
    answers = Answers(request, job, turn)
    if request.stream:
        await delivery.stream(exchange, service.engine, job, answers, answers.keep if turn else None)
        return
    await delivery.collect(service.engine, job, answers)
    await answers.keep()
    shown = answers.documents()
    await exchange.respond(200, msgspec.json.encode(shown[0] if answers.single else shown))


def native_job(request: NativeRequest, service: Service, trace: str) -> Job:
    """The validated job; raises UserError."""
    sampling = request.sampling_params or NativeSampling()
    refuse_unserved(request, native.NEUTRAL)
    refuse_unserved(sampling, native.SAMPLING_NEUTRAL)
    n = 1 if sampling.n is None else sampling.n
    if not 1 <= n <= MAX_CHOICES:
        raise UserError(f"n must be between 1 and {MAX_CHOICES}, not {n}.", param="n")
    top = (request.top_logprobs_num or 0) if request.return_logprob else None
    reads = top is not None and _start(request) >= 0
    fields = _fields(request, sampling)
    return parameters.job(
        fields,
        _prompts(request, service.model.vocab_size),
        service.model.vocab_size,
        max_tokens=sampling.max_new_tokens,
        logprobs=top,
        names=_NAMES,
        trace=trace,
        n=n,
        prompt_logprobs=top if reads else None,
        least=0,
        default_tokens=DEFAULT_MAX_TOKENS,
        rules=rules_of(fields),
        adapter=service.adapters.find(service.model.name, _lora(request)),
    )


def _lora(request: NativeRequest) -> object:
    """The adapter's name, in either field."""
    return request.lora_name if request.lora_path is None else request.lora_path


def _start(request: NativeRequest) -> int:
    return -1 if request.logprob_start_len is None else request.logprob_start_len


def _prompts(request: NativeRequest, vocab_size: int) -> tuple[Prompt, ...]:
    if (request.text is None) == (request.input_ids is None):
        raise UserError("Either text or input_ids must be given.", param="text")
    if request.input_ids is not None:
        return prompts.plain_prompts([*request.input_ids], vocab_size, "input_ids")
    texts = request.text or ""
    return prompts.plain_prompts(texts if isinstance(texts, str) else [*texts], vocab_size, "text")


def _fields(request: NativeRequest, sampling: NativeSampling) -> GenerationFields:
    return GenerationFields(
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        min_p=sampling.min_p,
        repetition_penalty=sampling.repetition_penalty,
        presence_penalty=sampling.presence_penalty,
        frequency_penalty=sampling.frequency_penalty,
        seed=sampling.sampling_seed,
        min_tokens=sampling.min_new_tokens,
        ignore_eos=sampling.ignore_eos,
        stop=sampling.stop,
        stop_token_ids=sampling.stop_token_ids,
        include_stop_str_in_output=sampling.no_stop_trim,
        skip_special_tokens=sampling.skip_special_tokens,
        logit_bias=sampling.logit_bias,
        cache_salt=request.cache_salt,
        priority=request.priority,
        return_token_ids=True,
        json_schema=sampling.json_schema,
        regex=sampling.regex,
        ebnf=sampling.ebnf,
        structural_tag=sampling.structural_tag,
    )


class _Answer:
    """One choice, as far as it has come."""

    def __init__(self) -> None:
        self.id = new_id("")
        self.text = ""
        self.ids: list[int] = []
        self.read: list[TextLogprob] = []
        self.logprobs: list[TextLogprob] = []
        self.last: TextRow | None = None
        self.prompt_tokens = self.cached_tokens = 0
        self.weights: tuple[str, ...] = ()

    def add(self, row: TextRow) -> None:
        """Take in a row."""
        self.text += row.text
        if row.tokens:
            self.ids += row.token_ids
            self.logprobs += row.logprobs
        else:
            self.read += row.logprobs
        if row.usage is not None:
            self.prompt_tokens, self.cached_tokens = row.usage.prompt_tokens, row.usage.cached_tokens
            self.weights = row.usage.weights
        self.last = row


class Answers:
    """All choices of one request: a stream's source, and the sink of an answer that is sent whole. turn: that
    it takes in a session, which has to keep it before its end is told."""

    def __init__(self, request: NativeRequest, job: Job, turn: Turn | None = None) -> None:
        self._turn = turn
        self.ended = False
        self.single = len(job.prompts) * job.n == 1 and not isinstance(request.text, list)
        self.single = self.single and not (request.input_ids and isinstance(request.input_ids[0], list))
        self._request = request
        self._limit = job.sampling.max_tokens
        self._all = [_Answer() for _ in range(len(job.prompts) * job.n)]
        self._open = len(self._all)
        self._dirty: dict[int, None] = {}
        self._error: ErrorBody | None = None

    def feed(self, index: int, row: TextRow) -> None:
        """Take in a row of choice `index`."""
        self._all[index].add(row)
        self._dirty[index] = None
        self._open -= row.finish is not Finish.NONE

    def fail(self, error: ErrorBody) -> None:
        """The end, by an error."""
        self._error = error

    def pump(self) -> None:
        """Nothing is sent before the end of an answer that is sent whole."""

    async def keep(self) -> None:
        """All has come: the session, if there is one, keeps it."""
        turn, self._turn = self._turn, None
        if turn is not None and self._error is None:
            await turn.keep(self._all[0].id, self._all[0].ids)

    def take(self) -> bytes:
        """The stream's events that are to be sent now."""
        if self._turn is not None and not self._open and self._error is None:
            return b""
        out = [self._event(index) for index in self._dirty if self._all[index].last is not None]
        self._dirty.clear()
        if self._error is not None:
            out.append(b"data: %b\n\n" % error_document(self._error))
        if self._error is not None or not self._open:
            out.append(b"data: [DONE]\n\n")
            self.ended = True
        return b"".join(out)

    def documents(self) -> list[NativeAnswer]:
        """Every choice."""
        return [self._document(answer) for answer in self._all]

    def _event(self, index: int) -> bytes:
        document = self._document(self._all[index])
        if not self.single:
            document.index = index
        return b"data: %b\n\n" % msgspec.json.encode(document)

    def _document(self, answer: _Answer) -> NativeAnswer:
        last, request = answer.last, self._request
        meta = NativeMeta(
            id=answer.id,
            finish_reason=_finish(last, self._limit) if last is not None else None,
            prompt_tokens=answer.prompt_tokens,
            completion_tokens=last.tokens if last is not None else 0,
            cached_tokens=answer.cached_tokens,
            weight_version=answer.weights[-1] if answer.weights else msgspec.UNSET,
            weight_versions=answer.weights or msgspec.UNSET,
        )
        if request.return_logprob:
            named, read = bool(request.return_text_in_logprobs), answer.read[max(_start(request), 0) :]
            meta.input_token_logprobs = [_chosen(entry, named) for entry in read]
            meta.output_token_logprobs = [_chosen(entry, named) for entry in answer.logprobs]
            if request.top_logprobs_num:
                meta.input_top_logprobs = [_best(entry, named) for entry in read]
                meta.output_top_logprobs = [_best(entry, named) for entry in answer.logprobs]
        return NativeAnswer(text=answer.text, output_ids=answer.ids, meta_info=meta)


def _finish(row: TextRow, limit: int | None) -> NativeFinish | None:
    match row.finish:
        case Finish.NONE:
            return None
        case Finish.STOP:
            return NativeFinish(type="stop", matched=row.stop)
        case Finish.LENGTH:
            return NativeFinish(type="length", length=row.tokens if limit is None else limit)
        case _:
            return NativeFinish(type="abort")


def _chosen(entry: TextLogprob, named: bool) -> LogprobEntry:
    text, _, value = entry.token
    return (None if math.isnan(value) else finite(value), entry.ids[0], text if named else None)


def _best(entry: TextLogprob, named: bool) -> list[LogprobEntry] | None:
    if math.isnan(entry.token[2]):
        return None
    ids = zip(entry.ids[1:], entry.top, strict=True)
    return [(finite(value), id, text if named else None) for id, (text, _, value) in ids]
