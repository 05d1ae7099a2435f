"""A company's state as values, from its tree, its lifecycle and the board, without asking any actor."""

from __future__ import annotations

import time
from typing import Any

from protocols.board import SUPERVISOR_COLUMNS, Column, State
from protocols.config import Config
from runtime.board import Row
from runtime.lifecycle import Act, Lifecycle
from runtime.phases import Phase
from runtime.tree import Child, Group, Member

_COUNTERS = [column for column in Column if column > SUPERVISOR_COLUMNS]


def actor_state(phase: Phase, row: Row) -> str:
    """An actor's state in one word: what the supervisor knows comes before what the actor shows."""
    match phase:
        case Phase.DOWN:
            return "down"
        case Phase.STARTING:
            return "starting"
        case Phase.DUE:
            return "restarting"
        case Phase.LEAVING:
            return "draining"
        case Phase.DOOMED:
            return "killed"
        case Phase.READY:
            state = row[Column.STATE]
            return State(state).name.lower() if state in set(State) else "ready"


def describe_actor(child: Child, life: Lifecycle, row: Row) -> dict[str, Any]:
    """One actor: its name, its state, and every counter of its row by the column's name."""
    alive = row[Column.PID] != 0
    started = row[Column.STARTED_NS]
    return {
        "name": child.name,
        "kind": child.kind,
        "state": actor_state(life.phase(child.name), row),
        "pid": row[Column.PID],
        "incarnation": row[Column.INCARNATION],
        "restarts": row[Column.RESTARTS],
        "uptime_seconds": (time.monotonic_ns() - started) / 1e9 if alive else 0.0,
        **{column.name.lower(): row[column] for column in _COUNTERS},
    }


def company_state(act: Act, actors: list[dict[str, Any]]) -> str:
    """One word for the whole: "degraded" while it serves but an actor is not ready."""
    if act is Act.SERVING and any(actor["state"] != "ready" for actor in actors):
        return "degraded"
    return act.value


def url(config: Config) -> str:
    """Where clients find the company."""
    host = f"[{config.host}]" if ":" in config.host else config.host
    return f"{'https' if config.tls_cert else 'http'}://{host}:{config.port}"


def describe_member(member: Member, life: Lifecycle, rows: dict[str, Row]) -> dict[str, Any]:
    """The tree from `member` down: groups with strategy and budget, actors with their state."""
    if isinstance(member, Group):
        return {
            "name": member.name,
            "strategy": member.strategy.value,
            "budget": {"restarts": member.budget.restarts, "seconds": member.budget.seconds},
            "children": [describe_member(child, life, rows) for child in member.children],
        }
    row = rows[member.name]
    return {
        "name": member.name,
        "kind": member.kind,
        "state": actor_state(life.phase(member.name), row),
        "pid": row[Column.PID],
        "incarnation": row[Column.INCARNATION],
        "restarts": row[Column.RESTARTS],
    }
