"""The weights that serve: showing them, updating them, rolling back."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from actors.control import groups, sources
from actors.control.change import PATIENCE, Manner, change, laid_over
from actors.control.fields import flag, number, time_for
from actors.control.ranks import to_all
from protocols.errors import VerbError
from protocols.weights import Peek, Peeked, Survey, Surveyed
from runtime.admin import Reply, Request, Send
from runtime.root import Root
from runtime.verbs import Verb, text

MOST_NUMBERS = 10_000


async def info(root: Root, request: Request, more: Send) -> Reply:
    """Which weights serve; with `verify`, as every executor reads them in its memory."""
    weights, before = root.standing.weights, root.standing.before
    reply: Reply = {
        "version": weights.version,
        "serial": weights.serial,
        "checksum": weights.checksum,
        "sources": [root.config.model.path, *(source.title for source in weights.sources)],
        "before": before.version if before is not None else None,
        "intact": _intact(root),
    }
    if not flag(request, "verify"):
        return reply
    with root.alone("a change of weights"):
        seconds = time_for(request, PATIENCE)
        answers = await to_all(root, Survey(), Surveyed, seconds, more, root.insist)
    found = {name: answer.checksum for name, answer in answers.items()}
    agreed = len(set(found.values())) == 1 and weights.checksum in ("", *found.values())
    if not agreed or {answer.serial for answer in answers.values()} != {weights.serial}:
        raise VerbError("failed", f"the executors do not have what was decided: {found}.")
    tensors = next(iter(answers.values())).tensors
    return {**reply, "checksum": next(iter(found.values())), "verified": sorted(found), "tensors": tensors}


def _intact(root: Root) -> bool:
    """Whether an executor that comes back can read what serves: nobody has written to its files."""
    layers = (root.config.model.files, *(source.files for source in root.standing.weights.sources))
    return all(root.holdings.intact(file) for files in layers for file in files)


async def get(root: Root, request: Request, _more: Send) -> Reply:
    """The first numbers of a tensor, as the first executor computes with it."""
    name = text(request, "name")
    count = int(number(request, "count", 100, most=MOST_NUMBERS))
    answer = await root.insist(root.actors("executor")[0], Peek(name, count), time_for(request, PATIENCE))
    assert isinstance(answer, Peeked)
    return {"name": name, "dtype": answer.dtype, "shape": answer.shape, "values": answer.numbers}


async def update(root: Root, request: Request, more: Send) -> Reply:
    """Serve the checkpoint in a directory or file: of all tensors, or of some."""
    path, manner = text(request, "source"), Manner.of(request)
    with root.alone("a change of weights"):
        source = await sources.from_disk(root, path, request)
        return await laid_over(root, source, request, manner, more)


async def tensors(root: Root, request: Request, more: Send) -> Reply:
    """Serve the tensors of a safetensors file in memory that is shared, of which a copy is kept."""
    path, manner = text(request, "path"), Manner.of(request)
    with root.alone("a change of weights"):
        source = await sources.from_memory(root, path, request)
        return await laid_over(root, source, request, manner, more)


async def rollback(root: Root, request: Request, more: Send) -> Reply:
    """Serve again what served before the last change."""
    manner = Manner.of(request)
    with root.alone("a change of weights"):
        before = root.standing.before
        if before is None:
            raise VerbError("conflict", "there are no weights from before: they have not changed.")
        wanted = msgspec.structs.replace(before, serial=root.standing.weights.serial + 1)
        return await change(root, wanted, manner, more)


VERBS: Mapping[str, Verb] = {
    "weights.info": info,
    "weights.get": get,
    "weights.update": update,
    "weights.tensors": tensors,
    "weights.rollback": rollback,
    **groups.VERBS,
}
