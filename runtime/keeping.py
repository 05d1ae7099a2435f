"""What a company keeps of its model and adapters from its start on.

An actor that comes back reads what the first one read, whatever has become of the directories: a trainer may
have rotated them away, or written another checkpoint over them. The small files are copied into memory. Of
weights the files are held open, and copied when somebody is about to write into them (`runtime/guarding.py`);
where that could not be seen in time their stamps tell, and nobody computes with them. `Keep.COPY` copies them
at once.
"""

from __future__ import annotations

import contextlib
import json
import pathlib
from collections.abc import Iterator

import msgspec

from protocols.adapters import CONFIG, WEIGHTS, Adapter
from protocols.config import MAX_JSON, Config, ExecutorKind, Keep
from protocols.errors import StartError, VerbError
from protocols.weights import INDEX, SINGLE, File
from runtime.holdings import Holdings

_SMALL = ("config.json", "tokenizer.json", INDEX)


def keep(holdings: Holdings, config: Config) -> Config:
    """The options with their files held. A file that cannot be read is left for the actor that needs it to
    complain about. StartError where memory runs out."""
    files: list[File] = []
    if config.executor is ExecutorKind.MODEL:
        directory = pathlib.Path(config.model.path)
        files += _kept(holdings, directory, _SMALL, Keep.COPY)
        files += _kept(holdings, directory, weight_files(directory), config.keep_weights)
    card = msgspec.structs.replace(config.model, files=tuple(files))
    try:
        loras = tuple(keep_adapter(holdings, adapter, config.keep_weights) for adapter in config.loras)
    except VerbError as error:
        raise StartError(str(error)) from error
    return msgspec.structs.replace(config, model=card, loras=loras)


def keep_adapter(holdings: Holdings, adapter: Adapter, how: Keep) -> Adapter:
    """The adapter with its files held. May take a while: use a thread. Raises VerbError."""
    directory = pathlib.Path(adapter.path)
    with contextlib.ExitStack() as undo:
        settings = holdings.keep(str(directory / CONFIG), CONFIG, how)
        undo.callback(holdings.drop, settings)
        weights = holdings.keep(str(directory / WEIGHTS), WEIGHTS, how)
        undo.pop_all()
    return msgspec.structs.replace(adapter, held=(settings, weights))


def _kept(holdings: Holdings, directory: pathlib.Path, names: tuple[str, ...], how: Keep) -> Iterator[File]:
    for name in names:
        try:
            held = holdings.hold(str(directory / name), name)
        except VerbError:
            continue
        try:
            yield holdings.keep_held(held, how)
        except VerbError as error:
            raise StartError(str(error)) from error


def weight_files(directory: pathlib.Path) -> tuple[str, ...]:
    """The files that hold a model's weights; none where the directory tells of none."""
    if (directory / SINGLE).is_file():
        return (SINGLE,)
    try:
        with (directory / INDEX).open("rb") as file:
            files = json.loads(file.read(MAX_JSON))["weight_map"].values()
        return tuple(sorted({name for name in files if pathlib.PurePath(name).name == name}))
    except (OSError, ValueError, RecursionError, KeyError, TypeError, AttributeError):
        return ()
