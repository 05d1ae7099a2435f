"""How many bytes mail can take, so that what one actor writes always fits the ring to the next.

A ring takes records of up to half its size. Tokens are cut by weight; a plan cannot be cut, so the rings
must be large enough for the heaviest one that the options allow, and a company whose rings are not does
not start.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from protocols.config import Config
from protocols.grammar import MAX_GRAMMAR
from protocols.messages import TokenRow
from protocols.plan import Logprobs, PromptOutput
from protocols.sampling import MAX_LOGIT_BIAS, MAX_TOP_LOGPROBS, SamplingParams

_NOTHING = PromptOutput()

HEAVY = 1 << 20
"""Bytes of block tables, histories, grammars and logit biases in a plan above which nobody else is admitted
with it, so that a plan always fits into a ring."""

BIAS_BYTES = 16
"""Bytes that one entry of a logit bias takes on the wire, rather more than less."""

SLOT_BYTES = 2048
"""Bytes that a slot takes in one plan besides its tokens, pages and biases (its sampling with all stop
tokens, grants, chunk, close, decode), or in one StepDone with all its logprobs; rather more than less."""

_READ_BYTES = 32 + 14 * MAX_TOP_LOGPROBS
"""Bytes that the logprobs of one token take, of a prompt or of a guess that was right."""

_OVERHEAD = 4096
"""Of a record and of a message."""


def least_ring_bytes(config: Config) -> int:
    """Capacity of a ring that takes every plan of a company with these options; a multiple of 8."""
    context = config.model.context
    pages = context // config.page_size + 1
    admission = 4 * (context + pages) + BIAS_BYTES * MAX_LOGIT_BIAS + MAX_GRAMMAR
    slots = SLOT_BYTES * config.max_running + _OVERHEAD
    plan = HEAVY + admission + 4 * config.chunk_size + slots
    done = _READ_BYTES * config.chunk_size + slots
    return -(-2 * max(plan, done) // 8) * 8


def row_bytes(row: TokenRow) -> int:
    """About how many bytes a row takes on the wire, rather more than less."""
    if not row.logprobs and row.prompt_output is None and row.error is None:  # nearly all
        return 48 + 5 * len(row.tokens)
    told = row.prompt_output or _NOTHING
    logprobs = _logprob_bytes(row.logprobs) + _logprob_bytes(told.logprobs) + len(told.pooled)
    error = 64 + 4 * len(row.error.message) if row.error is not None else 0
    return 48 + 5 * len(row.tokens) + logprobs + error


def _logprob_bytes(records: Sequence[Logprobs]) -> int:
    return sum(24 + 14 * len(record.ids) for record in records)


def reading_fits(sampling: SamplingParams, prompt_tokens: int, ring_bytes: int) -> bool:
    """Whether what is to be told of a prompt fits a record, tokens and finish beside it."""
    if sampling.prompt_logprobs is None:
        return True
    return prompt_tokens * (24 + 14 * sampling.prompt_logprobs) <= ring_bytes // 4


def portions(rows: Sequence[TokenRow], together: int) -> Iterator[tuple[TokenRow, ...]]:
    """All rows in order, in runs of about `together` bytes at most, or of one row."""
    start = weight = 0
    for index, row in enumerate(rows):
        size = row_bytes(row)
        if index > start and weight + size > together:
            yield tuple(rows[start:index])
            start, weight = index, 0
        weight += size
    if rows:
        yield tuple(rows[start:])
