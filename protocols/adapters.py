"""A LoRA adapter as all actors know it: its files, its name, and the number by which requests refer to it."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import pathlib
import re
import stat

import msgspec

from protocols.errors import ErrorBody, UserError
from protocols.weights import File

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"

UNLOADED = ErrorBody(404, "The adapter of this request was unloaded.", code="model_not_found", param="model")

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.\-/]{0,127}")


class Adapter(msgspec.Struct, frozen=True, array_like=True):
    """A loaded adapter. id: number of this load, from 1 on and never reused, so that KV cached under it
    belongs to these weights alone. path: its directory, absolute. digest: of its files. pinned: it keeps its
    slot in the executors. held: its files, while the supervisor holds them open."""

    id: int
    name: str
    path: str
    digest: str
    pinned: bool = False
    held: tuple[File, ...] = ()

    def file(self, name: str) -> pathlib.Path:
        """Where to open one of its files."""
        held = (pathlib.Path(file.path) for file in self.held if file.name == name)
        return next(held, pathlib.Path(self.path) / name)

    def digest_now(self) -> str:
        """The digest of its files as they are now. OSError where they cannot be read."""
        return _digest(self.file(CONFIG), self.file(WEIGHTS))


def check_name(name: str, model: str) -> None:
    """UserError unless `name` can be an adapter's beside the model's."""
    if not _NAME.fullmatch(name):
        raise UserError(
            "an adapter's name is 1 to 128 letters, digits and _ . - /, and begins with a letter or digit.",
            param="lora_name",
        )
    if name == model:
        raise UserError(f"'{name}' is the name of the model itself.", param="lora_name")


def open_regular(path: pathlib.Path) -> io.BufferedReader:
    """The file for reading. OSError where there is none, also where it is a pipe or something like it, which
    might never end."""
    file = os.fdopen(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK), "rb")
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(errno.EINVAL, "it is not a regular file", str(path))
    return file


def digest_of(directory: pathlib.Path) -> str:
    """The digest of the adapter's files in a directory. OSError where they cannot be read."""
    return _digest(directory / CONFIG, directory / WEIGHTS)


def _digest(*paths: pathlib.Path) -> str:
    digest = hashlib.sha256()
    for path in paths:
        with open_regular(path) as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()
