"""The sources of new weights: how they are checked, and how their files are held for as long as they
serve."""

from __future__ import annotations

import contextlib
import itertools
import json
import pathlib
from collections.abc import Iterable

import trio

from actors.control.fields import flag
from protocols.errors import VerbError
from protocols.weights import INDEX, SINGLE, File, Shape, Source, Weights
from runtime.admin import Request
from runtime.keeping import weight_files
from runtime.root import Root

MOST_FILES = 1000
MOST_CONFIG = 1 << 20
MOST_TENSORS = 100_000
_PICKLES = (".bin", ".pt", ".pth", ".ckpt")
_numbers = itertools.count(1)


async def from_disk(root: Root, path: str, request: Request) -> Source:
    """The checkpoint in a directory, or in a .safetensors file. Raises VerbError."""
    place = _checked(path)
    if not place.is_dir():
        return _source(str(place), (await _hold(root, place, SINGLE),), request)
    _check_config(root, place)
    with contextlib.ExitStack() as undo:
        held: list[File] = []
        for name in _names(place):
            held.append(await _hold(root, place / name, name))
            undo.callback(root.holdings.drop, held[-1])
        undo.pop_all()
    return _source(str(place), tuple(held), request)


async def _hold(root: Root, path: pathlib.Path, name: str) -> File:
    return await trio.to_thread.run_sync(root.holdings.keep, str(path), name, root.config.keep_weights)


async def from_memory(root: Root, path: str, request: Request) -> Source:
    """A copy of a safetensors file, so that its writer may use its memory again. Raises VerbError."""
    file = root.holdings.hold(str(_checked(path)), SINGLE)
    try:
        return _source(path, (await trio.to_thread.run_sync(root.holdings.copy, file, SINGLE),), request)
    finally:
        root.holdings.drop(file)


def from_blob(root: Root, blob: File, title: str, request: Request) -> Source:
    """A held safetensors file that is whole."""
    return _source(title, (File(SINGLE, blob.path, blob.stamp),), request)


def release(root: Root, known: Iterable[File]) -> None:
    """Let go of those of the `known` files that neither what serves needs nor what served before."""
    standing = root.standing
    kept: list[Weights] = [each for each in (standing.weights, standing.before) if each is not None]
    needed = {file.path for weights in kept for held in weights.sources for file in held.files}
    for file in known:
        if file.path not in needed:
            root.holdings.drop(file)


def shapes(request: Request) -> tuple[Shape, ...]:
    """The tensors that are to come, from `names`, `dtypes` and `shapes`, which are of one length."""
    names, dtypes, sizes = (request.get(key) for key in ("names", "dtypes", "shapes"))
    if not (isinstance(names, list) and isinstance(dtypes, list) and isinstance(sizes, list)):
        raise VerbError("usage", "names, dtypes and shapes must be lists.")
    if not 0 < len(names) == len(dtypes) == len(sizes) <= MOST_TENSORS:
        raise VerbError("usage", f"names, dtypes and shapes must have one length, {MOST_TENSORS} at most.")
    return tuple(_shape(*each) for each in zip(names, dtypes, sizes, strict=True))


def _shape(name: object, dtype: object, size: object) -> Shape:
    match name, dtype, size:
        case str(), str(), list() if all(type(each) is int and each >= 0 for each in size):
            return Shape(name, dtype, tuple(size))
        case _:
            raise VerbError(
                "usage", f"the tensor {name!r} must have a name, a dtype and a shape of integers."
            )


def _source(title: str, files: tuple[File, ...], request: Request) -> Source:
    return Source(next(_numbers), title, files, not flag(request, "allow_nonfinite"))


def _checked(path: str) -> pathlib.Path:
    if "\0" in path or not path.startswith("/"):
        raise VerbError("usage", f"{path!r} is not an absolute path.")
    if path.endswith(_PICKLES):
        raise VerbError(
            "usage", f"{path} is pickled, which can run code and is never loaded: use safetensors."
        )
    place = pathlib.Path(path)
    try:
        place.stat()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise VerbError("not_found", f"there is no {path}.") from error
    except OSError as error:
        raise VerbError("usage", f"cannot look at {path}: {error.strerror}.") from error
    return place


def _names(place: pathlib.Path) -> tuple[str, ...]:
    """Of the files that are to be held."""
    found = weight_files(place)
    if not found and not (place / INDEX).is_file():
        pickled = any(each.suffix in _PICKLES for each in place.iterdir())
        reason = ", and pickled weights can run code and are never loaded" if pickled else ""
        raise VerbError("usage", f"{place} holds no {SINGLE} and no {INDEX}{reason}.")
    if len(found) > MOST_FILES:
        raise VerbError("usage", f"{place} holds {len(found)} files, of at most {MOST_FILES}.")
    return found if found == (SINGLE,) else (INDEX, *found)


def _check_config(root: Root, place: pathlib.Path) -> None:
    """Where a checkpoint says what it is for, that must be the model that serves. No code of its own is
    run."""
    path = place / "config.json"
    if not path.is_file():
        return
    try:
        with path.open("rb") as file:
            config = json.loads(file.read(MOST_CONFIG))
    except (OSError, ValueError, RecursionError) as error:
        raise VerbError("usage", f"cannot read {path}: {error}.") from error
    if not isinstance(config, dict):
        raise VerbError("usage", f"{path} must hold a JSON object.")
    for key, sentence in (
        ("auto_map", "wants code of its own to be run, which is never done"),
        ("quantization_config", "holds quantised weights, which are not supported"),
    ):
        if config.get(key):
            raise VerbError("usage", f"{place} {sentence} ({key} in its config.json).")
    found, architecture = config.get("architectures"), root.config.model.architecture
    if isinstance(found, list) and found and architecture not in found:
        raise VerbError("usage", f"{place} is for a {found[0]}, but this model is a {architecture}.")
