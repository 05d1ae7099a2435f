"""A change of the weights that serve, from any source.

It has two phases. First every executor stages the new weights beside those that serve, and reports what it
found; nothing has changed yet, and any error ends the change there. Then generation is paused, the decision
is recorded in the standing, and all actors are told: executors compute with the new weights, schedulers drop
all KV of the old ones. An actor that dies before the decision comes back with the old weights, one that dies
after it with the new ones. As nothing is computed in between, no step ever mixes the two.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Mapping
from dataclasses import dataclass

import msgspec
import trio

from actors.control import sources
from actors.control.fields import choice, flag, label, time_for
from actors.control.ranks import gather, granted, processes, to_all, undo_all
from protocols.board import Column
from protocols.errors import VerbError
from protocols.orders import Answer, Continue, Know, Order, Pause, Renew
from protocols.standing import PauseMode
from protocols.weights import Commit, Discard, Examine, Mode, Source, Stage, Staged, Weights
from runtime.admin import Reply, Request, Send
from runtime.orders import Gone
from runtime.root import Root

PATIENCE = 600.0
"""Seconds that each phase of a change may take, unless its administrator says otherwise."""
LABELS = 256
"""Versions whose names are remembered; of an answer that is older, the serial is told."""
_LOOK = 0.02
_HELD = (PauseMode.IN_PLACE, PauseMode.RETRACT)
"""Pauses in which requests stay open and do not go on."""
_PAUSES = {Mode.KEEP: PauseMode.RETRACT, Mode.WAIT: PauseMode.WAIT, Mode.ABORT: PauseMode.ABORT}


@dataclass(frozen=True)
class Manner:
    """How a change is made. seconds: that each phase may take."""

    mode: Mode
    seconds: float
    dry_run: bool

    @classmethod
    def of(cls, request: Request) -> Manner:
        """As an administrator asks for it."""
        mode = Mode.ABORT if flag(request, "abort") else choice(request, "mode", Mode, Mode.KEEP)
        return cls(mode, time_for(request, PATIENCE), flag(request, "dry_run"))


async def laid_over(root: Root, source: Source, request: Request, manner: Manner, more: Send) -> Reply:
    """Serve `source` over what serves."""
    weights, before = root.standing.weights, root.standing.before
    sources_before = (*weights.sources, *(before.sources if before is not None else ()))
    known = [file for each in (source, *sources_before) for file in each.files]
    serial = weights.serial + 1
    version = label(request, "version") or str(serial)
    wanted = Weights(serial, version, (*weights.sources, source))
    try:
        return await change(root, wanted, manner, more)
    finally:
        sources.release(root, known)


async def change(root: Root, wanted: Weights, manner: Manner, more: Send) -> Reply:
    """Serve `wanted`. VerbError: nothing has changed, or orders after the decision fail."""
    begun, paused, before = trio.current_time(), root.standing.paused, processes(root)
    if manner.mode is Mode.WAIT and paused in _HELD:
        raise VerbError(
            "conflict",
            f"generation is paused ({paused}), so that no request can end: resume it first, or choose another"
            " mode, keep or abort.",
        )
    try:
        order = Examine(wanted) if manner.dry_run else Stage(wanted)
        staged = await to_all(root, order, Staged, manner.seconds, more)
        weights = _agreed(wanted, staged)
        found = next(iter(staged.values())).found
        reply = {
            "version": weights.version,
            "changed": len(found.changed),
            "bytes": found.size,
            "dry_run": manner.dry_run,
        }
        if manner.dry_run:
            return reply
        rested = trio.current_time()
        await _rest(root, manner)
        if processes(root) != before:
            raise VerbError("failed", "an executor died before the change was decided: nothing has changed.")
    except VerbError:
        await undo_all(root, Discard(), manner.seconds)
        if root.standing.paused is not paused:
            await _go_on(root, paused)
        raise
    await _decide(root, weights, manner.seconds)
    await _go_on(root, paused)
    now = trio.current_time()
    return {
        **reply,
        "serial": weights.serial,
        "checksum": weights.checksum,
        "seconds": round(now - begun, 3),
        "stopped_seconds": round(now - rested, 3),
        "message": f"The weights of version {weights.version} serve.",
    }


def _agreed(wanted: Weights, staged: Mapping[str, Staged]) -> Weights:
    """The weights to decide on: without the sources of which nothing is left."""
    checksums = {answer.checksum for answer in staged.values()}
    if len(checksums) > 1:
        raise VerbError("failed", f"the executors have read different weights: {sorted(checksums)}.")
    first = next(iter(staged.values()))
    used = tuple(source for source in wanted.sources if source.number in first.found.used)
    return msgspec.structs.replace(wanted, sources=used, checksum=first.checksum, dtype=first.dtype)


async def _rest(root: Root, manner: Manner) -> None:
    """Pause generation, and wait until no step is in flight and no request holds a page. Raises VerbError
    where that takes too long."""
    await _pause(root, _PAUSES[manner.mode], manner.seconds)
    if manner.mode is not Mode.WAIT:
        return
    with trio.move_on_after(manner.seconds) as scope:
        while any(root.row(name)[Column.RUNNING] for name in root.actors("scheduler")):
            await trio.sleep(_LOOK)
    if scope.cancelled_caught:
        raise VerbError("timeout", f"requests still run after {manner.seconds:g} s: nothing has changed.")
    await _pause(root, PauseMode.RETRACT, manner.seconds)


async def _pause(root: Root, mode: PauseMode, seconds: float) -> None:
    root.decide(paused=mode)
    await root.insist_all("scheduler", Pause(mode), seconds)


async def _go_on(root: Root, paused: PauseMode | None) -> None:
    """Let generation continue as before the change."""
    if paused is not None:
        await _pause(root, paused, PATIENCE)
        return
    root.decide(paused=None)
    await root.insist_all("scheduler", Continue(), PATIENCE)


async def _decide(root: Root, weights: Weights, seconds: float) -> None:
    """Record the decision, with which the change has happened, and tell the actors."""
    standing = root.standing
    labels = dict([*standing.labels.items(), (weights.serial, weights.version)][-LABELS:])
    root.decide(weights=weights, before=standing.weights, labels=labels)
    root.log.info(
        "weights changed", serial=weights.serial, version=weights.version, checksum=weights.checksum
    )
    await root.insist_all("tokenizer", Know(labels), seconds)
    give = functools.partial(_commit, root)
    granted(await gather(give, dict.fromkeys(root.actors("executor"), Commit(weights.serial)), seconds))
    await root.insist_all("scheduler", Renew(weights.serial), seconds)


async def _commit(root: Root, name: str, order: Order, seconds: float) -> Answer:
    """Have an executor commit. One that cannot must not serve: it is replaced, and its successor has the new
    weights."""
    try:
        return await root.insist(name, order, seconds)
    except Gone:
        raise
    except VerbError as error:
        root.log.error("weights not committed", name=name, error=str(error))
        with contextlib.suppress(VerbError):
            root.replace(name, gently=False)
        return await root.insist(name, order, seconds)
