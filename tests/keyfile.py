"""A company's keys: an administrator's, `boss`, and clients'."""

from __future__ import annotations

import pathlib

from protocols.keys import digest_of


def keyfile(folder: pathlib.Path, *clients: str, **worded: str) -> pathlib.Path:
    """A file in `folder` for `--keys`. Each key's text is its name, but for the `worded` ones'."""
    texts = {name: name for name in ("boss", *clients)} | worded
    entries = [f'[keys.{name}]\nsha256 = "{digest_of(text)}"\n' for name, text in texts.items()]
    entries[0] += "admin = true\n"
    path = folder / "keys.toml"
    path.write_text("".join(entries))
    return path
