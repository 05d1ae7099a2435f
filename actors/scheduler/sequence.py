"""A sequence: one choice of one request as the scheduler knows it, and the states of its life.

    Submit ──► WAITING ──► PREFILL ──► DECODE ──► LAST ──► ENDED ──► GONE
                  ▲           │           │
                  └───── RETRACTED ◄──────┘

    PREFILL    has a slot and pages; its known tokens are planned in chunks
    DECODE     all known tokens are planned; one more in every plan
    LAST       every token that it may have is planned and in the air
    RETRACTED  gave way when pages ran out; waits for its flights to land, commits what they bring
    ENDED      finished, aborted or failed; waits for its flights to land, ignores what they bring

PREFILL, DECODE and RETRACTED may end too; an executor that lost everything sends whoever had a slot back to
WAITING. Slot and pages are given up on the way out of RETRACTED and ENDED, and nowhere else.
"""

from __future__ import annotations

import enum
from array import array

from actors.scheduler.radix import Node
from protocols.messages import Submit
from protocols.plan import Logprobs, PromptOutput
from protocols.sampling import Pool
from protocols.weights import NOBODY, Made

DEATHS_ALONE = 2
"""Executor deaths with the sequence in flight, and no token in between, after which it runs alone."""

DEATHS_END = 3
"""The same, after which it ends with an error."""


class Stage(enum.Enum):
    """Where a sequence is in its life."""

    WAITING = enum.auto()
    PREFILL = enum.auto()
    DECODE = enum.auto()
    LAST = enum.auto()
    RETRACTED = enum.auto()
    ENDED = enum.auto()
    GONE = enum.auto()


TRANSITIONS: dict[Stage, frozenset[Stage]] = {
    Stage.WAITING: frozenset({Stage.PREFILL, Stage.GONE}),
    Stage.PREFILL: frozenset({Stage.DECODE, Stage.LAST, Stage.RETRACTED, Stage.ENDED, Stage.WAITING}),
    Stage.DECODE: frozenset({Stage.LAST, Stage.RETRACTED, Stage.ENDED, Stage.WAITING}),
    Stage.LAST: frozenset({Stage.ENDED, Stage.WAITING}),
    Stage.RETRACTED: frozenset({Stage.WAITING, Stage.ENDED}),
    Stage.ENDED: frozenset({Stage.GONE}),
    Stage.GONE: frozenset(),
}
"""From each stage, the stages that may follow. A stage with a slot goes to WAITING directly only when
the executor lost everything; otherwise it passes RETRACTED."""

RUNS = frozenset({Stage.PREFILL, Stage.DECODE})
"""Stages in which a sequence is planned further."""


class Sequence:
    """A choice, its tokens so far, and what it holds of the KV pool.

    output: int32 tokens committed so far. fill: the tokens that were known at admission (prompt, and
    output before a retraction or restart), which prefill runs through. pages: its block table; the
    first `shared` of them belong to the radix tree, under the lock on `node`, the others to the sequence.
    allowance: output tokens at most. cached: prompt tokens found in the prefix cache at the first admission.
    made: by which weights; serial: of the last of them that is noted. order: number of its arrival. deaths:
    see DEATHS_ALONE. prompt_logprobs, pooled: what this prefill has told of the prompt.
    whole: see Submit. adapter: id of its LoRA adapter, 0 for none. namespace: of its prefixes, for adapter
    and salt.
    """

    __slots__ = (
        "adapter",
        "allowance",
        "arrived_ns",
        "cached",
        "choice",
        "deaths",
        "fill",
        "made",
        "max_tokens",
        "namespace",
        "node",
        "order",
        "origin",
        "output",
        "pages",
        "pooled",
        "priority",
        "prompt",
        "prompt_len",
        "prompt_logprobs",
        "retracted",
        "rid",
        "sampling",
        "serial",
        "shared",
        "slot",
        "stage",
        "stops",
        "whole",
    )

    def __init__(
        self, submit: Submit, order: int, committed: tuple[int, ...] = (), made: Made = NOBODY
    ) -> None:
        assert submit.sampling.max_tokens is not None, "the tokenizer fills in max_tokens"
        self.rid = submit.rid
        self.arrived_ns = submit.arrived_ns
        self.origin = submit.origin
        self.choice = submit.choice
        self.whole = submit.whole
        self.sampling = submit.sampling
        self.priority = submit.priority
        self.adapter = submit.adapter
        self.namespace = f"{submit.adapter}/{submit.salt}"
        self.prompt = submit.tokens
        self.prompt_len = len(submit.tokens) // 4
        self.stops = frozenset(submit.sampling.stop_token_ids)
        self.max_tokens = submit.sampling.max_tokens
        self.allowance = self.max_tokens
        self.output = array("i", committed)
        self.made = made
        self.serial = 0
        self.order = order
        self.stage = Stage.WAITING
        self.retracted = bool(committed)
        self.deaths = 0
        self.prompt_logprobs: list[Logprobs] = []
        self.pooled = b""
        self.cached = -1
        self.fill = b""
        self.slot = -1
        self.node: Node | None = None
        self.pages: list[int] = []
        self.shared = 0

    def move(self, stage: Stage) -> None:
        """Move to `stage`."""
        assert stage in TRANSITIONS[self.stage], f"{self.stage} may not become {stage}"
        self.stage = stage

    @property
    def length(self) -> int:
        """Tokens known: prompt and output."""
        return self.prompt_len + len(self.output)

    def known(self) -> bytes:
        """All tokens known, int32."""
        return self.prompt + self.output.tobytes()

    @property
    def reads(self) -> bool:
        """Whether its prefill has to run over the whole prompt; not again once a token is committed."""
        return self.sampling.reads_prompt and not self.output

    def follower(self, end: int) -> int:
        """The prompt's token at position `end`, where its logprob is still to be told; else -1."""
        if self.sampling.prompt_logprobs is None or self.output or end >= self.prompt_len:
            return -1
        return int.from_bytes(self.prompt[4 * end : 4 * end + 4], "little")

    def note(self, prompt_output: PromptOutput) -> None:
        """Take in what a chunk told of the prompt."""
        self.prompt_logprobs += prompt_output.logprobs
        self.pooled = prompt_output.pooled

    def prompt_output(self) -> PromptOutput | None:
        """What was told of the prompt, for the first row; None where nothing is wanted."""
        asked = self.sampling.prompt_logprobs is not None or self.sampling.pool is not Pool.NONE
        return PromptOutput(tuple(self.prompt_logprobs), self.pooled) if asked and not self.output else None

    @property
    def suspect(self) -> bool:
        """Whether it was in flight at so many deaths of the executor that it must run alone."""
        return self.deaths >= DEATHS_ALONE
