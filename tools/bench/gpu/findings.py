"""What a case has found so far, in a file that is whole at any moment, whatever happens to the process."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import traceback
from collections.abc import Callable, Mapping
from typing import Any

DIED = "its process died"
_WORDS = 4000
"""Letters of an error at most."""


class Findings:
    """Pieces by their names. broken: tells whether the device is of no more use to this process."""

    def __init__(
        self, path: pathlib.Path, tell: Callable[[str, Any], None], broken: Callable[[], bool]
    ) -> None:
        """path: of the file, which may hold what another process has found before it died."""
        self._path, self._tell, self._broken = path, tell, broken
        self.found: dict[str, Any] = read(path)

    def piece(self, work: Callable[[], Any], *names: str) -> Any:
        """What `work` finds; whatever it raises is its result. Not done again where it was done before, nor
        where it has killed a process. Ends this process when the device has gone with it."""
        held = self._held(names)
        if held is not None:
            return held
        self.put({"failed": DIED}, *names)
        try:
            value = work()
        except Exception as error:
            where = traceback.format_exc().splitlines()[-12:]
            value = {"failed": told(error), "where": where}
        self.put(value, *names)
        self._tell(" ".join(names), value)
        if self._broken():
            os._exit(1)
        return value

    def put(self, value: Any, *names: str) -> None:
        """Under these names, one in the other."""
        place = self.found
        for name in names[:-1]:
            place = place.setdefault(name, {})
        place[names[-1]] = value
        fresh = self._path.with_suffix(".new")
        fresh.write_text(json.dumps(self.found))
        fresh.replace(self._path)

    def _held(self, names: tuple[str, ...]) -> Any:
        place: Any = self.found
        for name in names:
            place = place.get(name) if isinstance(place, Mapping) else None
        return place


def told(error: Exception) -> str:
    """An error as a result."""
    return f"{type(error).__name__}: {error}"[:_WORDS]


def read(path: pathlib.Path) -> dict[str, Any]:
    """What a file holds, nothing where there is none."""
    with contextlib.suppress(OSError, ValueError):
        found: dict[str, Any] = json.loads(path.read_text())
        return found
    return {}


def sound(found: Any) -> dict[str, Any]:
    """What of an unfinished case need not be done again: all pieces in which nothing failed or was wrong."""
    if not isinstance(found, Mapping) or "skipped" in found:
        return {}
    pieces = {name: value for name, value in found.items() if not wrong(value)}
    return {name: value for name, value in pieces.items() if name not in ("failed", "where", "took_seconds")}


def wrong(found: Any) -> bool:
    """Whether anything in a report failed, or was found not right."""
    if not isinstance(found, Mapping):
        return False
    return "failed" in found or found.get("right") is False or any(map(wrong, found.values()))
