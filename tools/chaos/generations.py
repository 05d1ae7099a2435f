"""Streams of `/generate`: tokens, when each came, and the weights that made them."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence

import trio

from tools.chaos.company import Company
from tools.chaos.http import Broken, Refusal, request


@dataclasses.dataclass
class Generation:
    """One answer. arrivals: when each of `ids` came (Trio's clock)."""

    prompt: list[int]
    ids: list[int] = dataclasses.field(default_factory=list)
    arrivals: list[float] = dataclasses.field(default_factory=list)
    versions: list[str] = dataclasses.field(default_factory=list)
    finish: str = ""
    error: str = ""

    @property
    def pause(self) -> float:
        """The longest time between two of its tokens, in seconds."""
        return max((later - earlier for earlier, later in itertools.pairwise(self.arrivals)), default=0.0)


async def generate(
    company: Company,
    prompt: Sequence[int],
    tokens: int,
    into: Generation | None = None,
    key: str = "",
    **fields: str,
) -> Generation:
    """Stream a greedy answer of so many tokens; `into` is filled meanwhile. fields: of the request."""
    seen = into or Generation(list(prompt))
    sampling = {"max_new_tokens": tokens, "ignore_eos": True, "temperature": 0, "sampling_seed": 1}
    body = {"input_ids": list(prompt), "sampling_params": sampling, "stream": True, **fields}
    headers = (("authorization", f"Bearer {key}"),) if key else ()
    try:
        async with request(company.host, company.port, "POST", "/generate", body, headers) as answer:
            while (event := await answer.event()) is not None:
                meta = event["meta_info"]
                new = len(event["output_ids"]) - len(seen.ids)
                seen.ids = event["output_ids"]
                seen.arrivals += [trio.current_time()] * new
                seen.versions = meta.get("weight_versions", seen.versions)
                seen.finish = (meta["finish_reason"] or {}).get("type", seen.finish)
    except (Broken, Refusal) as error:
        seen.error = str(error)
    return seen


async def crowd(company: Company, prompts: Sequence[Sequence[int]], tokens: int) -> list[Generation]:
    """All at once, to their ends."""
    found = [Generation(list(prompt)) for prompt in prompts]
    async with trio.open_nursery() as nursery:
        for each in found:
            nursery.start_soon(generate, company, each.prompt, tokens, each)
    return found
