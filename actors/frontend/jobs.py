"""What a client asked of the model, and the mail that asks it of a tokenizer."""

from __future__ import annotations

import dataclasses
import secrets
import time
from collections.abc import Mapping

import msgspec

from protocols.adapters import Adapter
from protocols.grammar import Rules
from protocols.messages import Generate
from protocols.request import OutputOptions, Prompt
from protocols.sampling import SamplingParams

_FREE = Rules()


@dataclasses.dataclass(frozen=True)
class Job:
    """What a client asked for: `n` choices for each prompt; choice i * n + j is number j of prompt i.
    client, default_tokens, truncate, rules and adapter: see Generate. names: what the endpoint calls those
    of our fields that it calls differently."""

    prompts: tuple[Prompt, ...]
    sampling: SamplingParams
    output: OutputOptions
    n: int = 1
    priority: int = 0
    salt: str = ""
    trace: str = ""
    client: bytes = b""
    default_tokens: int = 0
    truncate: int = 0
    rules: Rules = _FREE
    adapter: Adapter | None = None
    names: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def whole(self) -> Job:
        """The same job for a client that gets nothing before the end."""
        return dataclasses.replace(self, output=msgspec.structs.replace(self.output, whole=True))


def mails_of(job: Job, rids: tuple[int, ...], origin: int, salt: str) -> tuple[Generate, ...]:
    """One message for each prompt, with `job.n` of `rids`. origin: of the frontend. salt: see Generate."""
    return tuple(
        Generate(
            rids=rids[i * job.n : (i + 1) * job.n],
            origin=origin,
            prompt=prompt,
            sampling=_seeded(job.sampling),
            output=job.output,
            priority=job.priority,
            salt=salt,
            trace=job.trace,
            arrived_ns=time.monotonic_ns(),
            client=job.client,
            default_tokens=job.default_tokens,
            truncate=job.truncate,
            rules=job.rules,
            adapter=job.adapter.id if job.adapter is not None else 0,
        )
        for i, prompt in enumerate(job.prompts)
    )


def _seeded(sampling: SamplingParams) -> SamplingParams:
    """The parameters with a seed, drawn at random where the client gave none."""
    if sampling.seed is not None:
        return sampling
    return msgspec.structs.replace(sampling, seed=secrets.randbits(63))
