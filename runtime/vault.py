"""The keys of a company and what each has used, in shared memory: the supervisor writes, frontends look.

    word 0: generation ─┬─ even: keyring in half 0     odd: keyring in half 1
                        └─ published last, so a reader sees the old keyring or the new one, whole
    behind the halves: for each frontend a row of LINE bytes for each key: what it holds and has spent

So a new key file holds for every request that begins after `publish` has returned, at whatever frontend,
and a frontend's successor finds how much a key has spent.
"""

from __future__ import annotations

import enum
import os
import pathlib
import stat

import msgspec

from protocols.config import Config
from protocols.errors import StartError
from protocols.keys import MAX_FILE, MAX_KEYS, Key, KeyLimits, Keyring, parse_keys
from runtime import segment

_HEAD = segment.LINE
_HALF = 1024 * 1024
_WORDS = segment.LINE // segment.WORD


class Use(enum.IntEnum):
    """Words of a key's row at one frontend, which alone writes them. RUNNING: open choices; CONNECTED: open
    WebSockets; SPENT: tokens so far. The rest is its view of the key's bucket: DEBT in millitokens at the
    monotonic time STAMP_NS, when all frontends together had SEEN spent."""

    RUNNING = 0
    CONNECTED = 1
    SPENT = 2
    DEBT = 3
    STAMP_NS = 4
    SEEN = 5


class _Published(msgspec.Struct, frozen=True):
    """slots: row of each key, by name."""

    keyring: Keyring
    slots: dict[str, int]


class Vault:
    """The whole object."""

    def __init__(self, mapping: segment.Mapping, frontends: int) -> None:
        self.fd = mapping.fd
        self.frontends = frontends
        self._mapping = mapping
        self._words = mapping.words
        self._views: list[memoryview] = []
        self._slots: dict[str, int] = {}

    @classmethod
    def create(cls, frontends: int) -> Vault:
        """A new one, with a keyring that asks for no key."""
        size = _size(frontends)
        vault = cls(segment.Mapping(segment.create(size), size), frontends)
        vault.publish(Keyring())
        return vault

    @classmethod
    def attach(cls, fd: int, frontends: int) -> Vault:
        """The one behind an inherited descriptor, which the object owns from now on."""
        return cls(segment.Mapping(fd, _size(frontends)), frontends)

    @property
    def generation(self) -> int:
        """Grows with every new keyring."""
        return self._words[0]

    def publish(self, keyring: Keyring) -> None:
        """Make `keyring` the one that holds. Raises StartError where there is no room for it."""
        slots = dict(self._slots)
        for key in keyring.keys:
            slots.setdefault(key.name, len(slots))
        data = msgspec.msgpack.encode(_Published(keyring, slots))
        if len(slots) > 2 * MAX_KEYS or len(data) > _HALF - segment.WORD:
            raise StartError("there were too many different keys since the start; restart the company.")
        self._slots = slots
        generation = self.generation + 1
        start = _HEAD + generation % 2 * _HALF
        self._mapping.data[start + segment.WORD : start + segment.WORD + len(data)] = data
        self._words[start // segment.WORD] = len(data)
        self._words[0] = generation

    def read(self) -> tuple[int, Keyring, dict[str, int]]:
        """Generation, keyring, and the row of each key by its name."""
        while True:
            generation = self.generation
            start = _HEAD + generation % 2 * _HALF
            size = min(self._words[start // segment.WORD], _HALF - segment.WORD)
            data = bytes(self._mapping.data[start + segment.WORD : start + segment.WORD + size])
            if generation == self.generation:
                published = msgspec.msgpack.decode(data, type=_Published)
                return generation, published.keyring, published.slots

    def row(self, frontend: int, slot: int) -> memoryview:
        """The words of `Use` for one key at one frontend; dead once the vault is closed."""
        start = _row_start(frontend, slot)
        view = self._words[start : start + _WORDS]
        self._views.append(view)
        return view

    def vacate(self, frontend: int) -> None:
        """A frontend begins: it holds nothing yet."""
        for slot in range(2 * MAX_KEYS):
            start = _row_start(frontend, slot)
            self._words[start + Use.RUNNING] = self._words[start + Use.CONNECTED] = 0

    def used(self, name: str) -> dict[str, int]:
        """What a key holds and has spent, at all frontends together."""
        starts = [_row_start(frontend, self._slots[name]) for frontend in range(self.frontends)]
        uses = (Use.RUNNING, Use.CONNECTED, Use.SPENT)
        return {use.name.lower(): sum(self._words[start + use] for start in starts) for use in uses}

    def close(self) -> None:
        """Unmap and close the descriptor."""
        for view in self._views:
            view.release()
        self._mapping.close()


def _size(frontends: int) -> int:
    return _HEAD + 2 * _HALF + frontends * 2 * MAX_KEYS * segment.LINE


def _row_start(frontend: int, slot: int) -> int:
    """Index of a row's first word."""
    return (_HEAD + 2 * _HALF) // segment.WORD + (frontend * 2 * MAX_KEYS + slot) * _WORDS


def load_keys(config: Config) -> Keyring:
    """The keys that the options name: those of the file, read now, and those given one by one, which have the
    file's [limits]. Raises StartError with a sentence."""
    limits, keys = KeyLimits(), tuple[Key, ...]()
    if config.keys_file:
        limits, keys = parse_keys(_read(pathlib.Path(config.keys_file)), config.keys_file)
    named = {key.digest for key in keys}
    given = tuple(
        Key(f"option.{i}", digest, limits=limits)
        for i, digest in enumerate(dict.fromkeys(config.api_keys))
        if digest not in named
    )
    return Keyring(bool(config.keys_file or config.api_keys), (*given, *keys))


def _read(path: pathlib.Path) -> str:
    """A plain file's text; what could block or never end is refused."""
    try:
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise StartError(f"the key file {path} is not a file.")
            data = file.read(MAX_FILE + 1)
    except OSError as error:
        raise StartError(f"cannot read the key file {path}: {error.strerror}.") from error
    if len(data) > MAX_FILE:
        raise StartError(f"the key file {path} is longer than {MAX_FILE} bytes.")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise StartError(f"the key file {path} is not UTF-8 text.") from error
