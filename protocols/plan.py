"""One forward step: decided by the scheduler, run by the executor.

A plan names *slots* (rows of the executor's device state, 0 .. max_running - 1), not token values:
the executor keeps the last sampled token of every slot, so plan N + 1 can be launched before the
tokens of plan N reach the CPU. Per-slot state changes by deltas (opens, pages, closes); a pure decode
plan is little more than its list of slots.

Order within a plan: closes, opens, pages, then the forward over `chunks` and `decodes`.
All arrays are little-endian int32 bytes, read with `numpy.frombuffer(x, "<i4")`.
"""

from __future__ import annotations

import msgspec

from protocols.errors import ErrorBody
from protocols.sampling import SamplingParams
from protocols.wire import Message


class SlotOpen(msgspec.Struct, frozen=True, array_like=True):
    """A sequence takes `slot`.

    sampling: with `seed` and `max_tokens` filled in. choice: index within an n > 1 request, part of
    the sampling counter. prompt_len: tokens of the prompt; output token i is at position prompt_len + i.
    cached: tokens at the start whose KV already lies in the granted pages; the first chunk starts
    there. history: every token known at this open (prompt, then what was committed before a retraction
    or a recovery), int32, only where `sampling.remembers`, or where the company speculates and
    `sampling.draftable`, else empty; later tokens the executor adds as it samples them. adapter: id of the
    LoRA adapter that it goes through, 0 for none; in all slots together no more than fit at once.
    """

    slot: int
    rid: int
    sampling: SamplingParams
    choice: int
    prompt_len: int
    cached: int
    history: bytes = b""
    adapter: int = 0


class PageGrant(msgspec.Struct, frozen=True, array_like=True):
    """Pages appended to a slot's block table, at entries `first` and up: int32 page numbers."""

    slot: int
    first: int
    pages: bytes


class Chunk(msgspec.Struct, frozen=True, array_like=True):
    """Prefill of `tokens` (int32) at positions start .. start + len - 1 of `slot`.

    sample: this is the end of the known tokens, so one token is sampled from the last logits.
    follower: the prompt's next token behind these, where its logprob is wanted; else -1.
    """

    slot: int
    start: int
    tokens: bytes
    sample: bool
    follower: int = -1


class Plan(Message, frozen=True, array_like=True, tag=16):
    """One step. `epoch`: the scheduler's run; an executor that sees a new epoch forgets every slot.
    Epochs only grow, and steps count from 0 in each, so a plan of an older epoch is not to be run.

    decodes: int32 slots; each runs its last sampled token at its next position and samples one more.
    drafts: empty, or for each of `decodes` how many guessed tokens it may run behind that one (int32). Every
    guess that the sampler confirms is a further token of this step. Guesses go no further than the pages
    granted and `max_tokens`; a slot that has nothing left to sample there has no row at all.
    rounds: how many times the decodes run, one token further each time; more than once only where there are
    neither chunks nor drafts. Pages are granted for all rounds. traced: somebody in it is traced, so the
    executor notes when it ran.
    """

    epoch: int
    step: int
    closes: tuple[int, ...] = ()
    opens: tuple[SlotOpen, ...] = ()
    grants: tuple[PageGrant, ...] = ()
    chunks: tuple[Chunk, ...] = ()
    decodes: bytes = b""
    drafts: bytes = b""
    rounds: int = 1
    traced: bool = False


class Logprobs(msgspec.Struct, frozen=True, array_like=True):
    """Log probabilities at one position, of the model's own distribution (before penalties,
    bias and temperature): of the chosen token, and of the `len(ids)` most likely, best first.
    rank: of the chosen token among all, 1 the most likely; 0 where it was not counted."""

    chosen: float
    ids: tuple[int, ...] = ()
    values: tuple[float, ...] = ()
    rank: int = 0


class PromptOutput(msgspec.Struct, frozen=True, array_like=True):
    """What the forward over a prompt tells of it, as its sampling asks (`prompt_logprobs`, `pool`).

    logprobs: of the prompt's tokens in order, from the second one on: nothing predicts the first. pooled:
    little-endian float32, [hidden].
    """

    logprobs: tuple[Logprobs, ...] = ()
    pooled: bytes = b""


class StepDone(Message, frozen=True, array_like=True, tag=17):
    """Result of a plan: tokens[i] was sampled for slots[i] (both int32 bytes; chunks with
    `sample` first, in plan order, then decodes in plan order). Where the plan has rounds, they follow each
    other. Where it has drafts, its decodes come in any order, each once for each of its new tokens, in their
    order, or not at all.

    logprobs: (index into slots, Logprobs) for those that asked. elapsed_us: time of the step on
    the executor. failed: (slot, why) of rows that could not be computed (NaN logits); their token is -1.
    prompt_outputs: (slot, PromptOutput), what each chunk tells of its part of the prompt; the pooled state
    comes with the last.
    drafted: tokens guessed in this step; accepted: those of them that the sampler confirmed.
    """

    epoch: int
    step: int
    slots: bytes
    tokens: bytes
    elapsed_us: int
    logprobs: tuple[tuple[int, Logprobs], ...] = ()
    failed: tuple[tuple[int, ErrorBody], ...] = ()
    prompt_outputs: tuple[tuple[int, PromptOutput], ...] = ()
    drafted: int = 0
    accepted: int = 0


class ExecutorReady(Message, frozen=True, array_like=True, tag=18):
    """An executor came up with empty pages and slots (also after a restart: whatever was in flight
    there is gone). pages: size of its KV pool; page_size in tokens; slots: rows of device state; excused:
    how many of the incarnations before it died of what no request is to blame for."""

    incarnation: int
    pages: int
    page_size: int
    slots: int
    vocab_size: int
    excused: int = 0
