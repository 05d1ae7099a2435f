"""Which experts the rows of a mixture-of-experts model go to: counted by the executors, told on demand."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping

from actors.control.fields import time_for
from actors.control.ranks import undo_all
from protocols.board import Column
from protocols.errors import VerbError
from protocols.orders import ExpertRows, RecordExperts, TakeExperts
from runtime.admin import Reply, Request, Send
from runtime.root import Root
from runtime.verbs import Verb


async def start(root: Root, request: Request, _more: Send) -> Reply:
    """Count from now on. An executor that comes back meanwhile counts too, from its own start."""
    seconds = time_for(request)
    with root.alone("another change"):
        if root.standing.recording:
            raise VerbError("conflict", "the experts are being counted already.")
        try:
            await root.insist_all("executor", RecordExperts(True), seconds)
        except VerbError:
            await undo_all(root, RecordExperts(False), seconds)
            raise
        root.decide(recording=_incarnations(root))
        await root.insist_all("executor", RecordExperts(True), seconds)
    return {"recording": True}


async def stop(root: Root, request: Request, _more: Send) -> Reply:
    """Count no more. What was counted can still be told."""
    seconds = time_for(request)
    with root.alone("another change"):
        if not root.standing.recording:
            raise VerbError("conflict", "the experts are not being counted: start that first.")
        complete = root.standing.recording == _incarnations(root)
        root.decide(recording=())
        await root.insist_all("executor", RecordExperts(False), seconds)
    return {"recording": False, "complete": complete}


async def dump(root: Root, request: Request, _more: Send) -> Reply:
    """Rows by layer and expert, of all replicas together; they are counted anew. complete: no executor has
    died since, and taken what it had counted with it."""
    seconds = time_for(request)
    with root.alone("another change"):
        before, now = root.standing.recording, _incarnations(root)
        answers = await root.insist_all("executor", TakeExperts(), seconds)
        if before and before != now:
            root.decide(recording=now)
    total: defaultdict[int, Counter[int]] = defaultdict(Counter)
    for answer in answers.values():
        assert isinstance(answer, ExpertRows)
        for layer, rows in answer.layers.items():
            total[layer].update(dict(enumerate(rows)))
    if not total:
        raise VerbError("conflict", "no experts have been counted: start that first.")
    layers = [
        {"layer": layer, "rows": [rows[expert] for expert in range(len(rows))]}
        for layer, rows in sorted(total.items())
    ]
    return {"recording": bool(before), "complete": before in ((), now), "layers": layers}


def _incarnations(root: Root) -> tuple[int, ...]:
    return tuple(root.row(name)[Column.INCARNATION] for name in root.actors("executor"))


VERBS: Mapping[str, Verb] = {"experts.start": start, "experts.stop": stop, "experts.dump": dump}
