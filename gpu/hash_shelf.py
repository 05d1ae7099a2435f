"""The adapters of a hash executor: files of any bytes, of which only the digest counts."""

from __future__ import annotations

from collections.abc import Sequence

from protocols.adapters import Adapter
from protocols.errors import UserError


class HashShelf:
    """As `gpu.lora.table.Shelf`. It sees that a slot is emptied before it is taken, and keeps nothing."""

    def __init__(self) -> None:
        self._taken: set[int] = set()

    def read(self, adapter: Adapter) -> tuple[None, str]:
        """See `Shelf.read`."""
        try:
            return None, adapter.digest_now()
        except OSError as error:
            raise UserError(f"cannot read {adapter.path} and its weights: {error.strerror}.") from error

    def reserve(self, slots: int, adapters: Sequence[None]) -> None:
        """See `Shelf.reserve`."""

    def put(self, slot: int, prepared: None) -> None:
        """See `Shelf.put`."""
        assert slot not in self._taken, "two adapters in one slot"
        self._taken.add(slot)

    def clear(self, slot: int) -> None:
        """See `Shelf.clear`."""
        self._taken.discard(slot)
