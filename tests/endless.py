"""A model whose answers do not end by themselves, for tests of what ends or interrupts them."""

from __future__ import annotations

import json
import pathlib

from tools.actorctl.serve import DEMO_MODEL

_ENDS = {"eos_token_id", "eos_token"}


def endless(folder: pathlib.Path) -> str:
    """The path of one, made in `folder`: the demo model without a token that ends an answer, which the hash
    executor draws now and then, whatever it is asked."""
    model = folder / "endless"
    model.mkdir()
    for file in DEMO_MODEL.iterdir():
        if file.name.endswith("config.json"):
            settings = json.loads(file.read_text())
            kept = {key: value for key, value in settings.items() if key not in _ENDS}
            (model / file.name).write_text(json.dumps(kept))
        else:
            (model / file.name).symlink_to(file)
    return str(model)
