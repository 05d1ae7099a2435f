"""What the scheduler's core decides: commands as small frozen values, carried out by its actor."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

from protocols.messages import Submit, TokenRow
from protocols.plan import Plan
from protocols.request import Finish
from protocols.weights import NOBODY, Made


@dataclasses.dataclass(frozen=True, slots=True)
class Resume:
    """Mail from the actor itself at its start: a choice found open in the ledger, with the output
    tokens that were committed for it, and the weights that had made them."""

    submit: Submit
    committed: tuple[int, ...]
    made: Made = NOBODY


@dataclasses.dataclass(frozen=True, slots=True)
class Launch:
    """Send `plan` to the executor."""

    plan: Plan


@dataclasses.dataclass(frozen=True, slots=True)
class Note:
    """Note in the ledger which weights made choice `rid`, before what they made is committed."""

    rid: int
    made: Made


@dataclasses.dataclass(frozen=True, slots=True)
class Emit:
    """Commit each row to the ledger, then send all of them to tokenizer `origin` as one Tokens."""

    origin: int
    rows: tuple[TokenRow, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class Settle:
    """Note in the ledger that choice `rid` ended without another token; nobody is told, because whoever
    ended it (abort, stop string) knows. Keeps a later incarnation from taking it up again."""

    rid: int
    finish: Finish


class Load(NamedTuple):
    """Figures for the board, as `protocols.board.Column` describes them."""

    tokens_held: int
    running: int
    waiting: int
    pages_total: int
    pages_free: int
    pages_cached: int
    pages_owned: int
    requests: int
    prompt_tokens: int
    query_tokens: int
    cached_tokens: int
    generated_tokens: int
    preemptions: int
    steps: int
    step_us: int
    drafted: int
    accepted: int
    pages_available: int
    last_dispatch: int


Command = Launch | Note | Emit | Settle | Load
