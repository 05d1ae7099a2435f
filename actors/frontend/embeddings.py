"""`/v1/embeddings`: pooled hidden states of the served model, computed as prefill among everything else."""

from __future__ import annotations

import base64
import dataclasses

import msgspec
import numpy as np
import numpy.typing as npt

from actors.frontend import delivery, parameters, prompts
from actors.frontend.jobs import Job
from actors.frontend.service import Service, read
from actors.frontend.text import Collector
from protocols.errors import UserError
from protocols.openai.embeddings import Embedding, EmbeddingList, EmbeddingRequest, EmbeddingUsage
from protocols.openai.generation import GenerationFields
from protocols.request import Prompt
from protocols.sampling import Pool
from runtime.exchange import Exchange

TOGETHER = 64
"""Inputs of one request that are in the engine at the same time at most."""

_decoder = msgspec.json.Decoder(EmbeddingRequest)
_POOLS = {"last": Pool.LAST, "mean": Pool.MEAN}
_FORMATS = ("float", "base64")


async def create(service: Service, exchange: Exchange) -> None:
    """Answer `POST /v1/embeddings`."""
    request = await read(_decoder, await exchange.body())
    adapter = service.adapters.find(request.model)
    asked = prompts.plain_prompts(request.input, service.model.vocab_size, "input")
    job = dataclasses.replace(_job(request, service, asked, service.trace_of(exchange)), adapter=adapter)
    data: list[Embedding] = []
    tokens = 0
    together = min(TOGETHER, service.engine.slots.capacity)
    for start in range(0, len(asked), together):
        part = dataclasses.replace(job, prompts=asked[start : start + together])
        collector = Collector(len(part.prompts), 1)
        await delivery.collect(service.engine, part, collector)
        tokens += collector.meter.total().prompt_tokens
        for pending in collector.pending:
            data.append(Embedding(index=len(data), embedding=_shown(pending.take(), request)))
    answer = EmbeddingList(data=data, model=service.title(job), usage=EmbeddingUsage(tokens, tokens))
    await exchange.respond(200, msgspec.json.encode(answer))


def _job(request: EmbeddingRequest, service: Service, asked: tuple[Prompt, ...], trace: str) -> Job:
    if request.encoding_format is not None and request.encoding_format not in _FORMATS:
        raise UserError("encoding_format must be 'float' or 'base64'.", param="encoding_format")
    if request.dimensions is not None and request.dimensions < 1:
        raise UserError("dimensions must be positive.", param="dimensions")
    pool = _POOLS.get(request.pooling or "last")
    if pool is None:
        raise UserError("pooling must be 'last' or 'mean'.", param="pooling")
    fields = GenerationFields(
        temperature=0.0,
        cache_salt=request.cache_salt,
        priority=request.priority,
        truncate_prompt_tokens=request.truncate_prompt_tokens,
    )
    job = parameters.job(
        fields,
        asked,
        service.model.vocab_size,
        max_tokens=0,
        least=0,
        logprobs=None,
        names={"prompt": "input"},
        trace=trace,
    )
    return dataclasses.replace(job, sampling=msgspec.structs.replace(job.sampling, pool=pool))


def _shown(text: str, request: EmbeddingRequest) -> list[float] | str:
    """A pooled state, cut, normalised and written as asked. Raises UserError."""
    vector: npt.NDArray[np.float32] = np.frombuffer(base64.b64decode(text), "<f4")
    if request.dimensions is not None and request.dimensions > len(vector):
        raise UserError(f"dimensions must be at most {len(vector)}.", param="dimensions")
    vector = vector[: request.dimensions]
    if request.normalize is not False:
        length = float(np.sqrt((vector.astype(np.float64) ** 2).sum()))
        vector = (vector / max(length, 1e-12)).astype("<f4")
    if request.encoding_format == "base64":
        return base64.b64encode(vector.tobytes()).decode()
    return [float(value) for value in vector]
