"""Click parameter type of byte sizes such as `2GiB`."""

from __future__ import annotations

import re

import click

_UNITS = {
    "": 1,
    "k": 1000,
    "m": 1000**2,
    "g": 1000**3,
    "ki": 1 << 10,
    "mi": 1 << 20,
    "gi": 1 << 30,
    "t": 1000**4,
    "ti": 1 << 40,
}


class ByteSize(click.ParamType[int]):
    """Bytes, written `800M`, `2GiB` or `1073741824`."""

    name = "size"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Bytes of `value`; click.BadParameter when it is not a size."""
        if isinstance(value, int):
            return value
        match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]i?)?b?\s*", str(value).lower())
        if match is None:
            self.fail(f"{value!r} is not a size; write 800M or 2GiB.", param, ctx)
        return int(float(match[1]) * _UNITS[match[2] or ""])
