"""Where the time of a step goes: the parts of a real run, and the picture of them."""

from __future__ import annotations

import pathlib
from xml.etree import ElementTree

import pytest

from gpu.cpu.library import WORKS
from protocols.config import Config, read_model_card
from tools.actorctl.serve import DEMO_MODEL
from tools.bench.breakdown import Company, lines, tree
from tools.bench.flame import Box, draw
from tools.bench.peers.cases import Case

SVG = "{http://www.w3.org/2000/svg}"


def test_every_decode_step_is_taken_apart() -> None:
    card = read_model_card(pathlib.Path(DEMO_MODEL))
    company = Company(Config(card, device="cpu", dtype="bfloat16", max_running=2, kv_memory=1 << 26))
    if company.executor._kernels is None:
        pytest.skip("no kernels")
    times = company.run(Case("two", requests=2, own=8, output=12), 0)
    company.close()
    assert times.steps == 11
    rows = list(times.table(WORKS))
    spent = {name: microseconds for name, microseconds, _ in rows}
    assert {"qkv", "attention", "gate and up", "head", "Python of a launch", "scheduler: a turn"} <= set(
        spent
    )
    assert all(microseconds > 0 for microseconds in spent.values())
    assert len(list(lines("two", rows))) == len(rows) + 4
    assert tree("demo", "two", rows).size == pytest.approx(sum(spent.values()))


def test_boxes_are_as_wide_as_their_share() -> None:
    root = Box("a step", 100.0, (Box("<kernels>", 75.0, (Box("waiting", 25.0),)), Box("rings", 25.0)))
    drawn = ElementTree.fromstring(draw(root))
    boxes = [
        (float(box.attrib["x"]), float(box.attrib["y"]), float(box.attrib["width"]))
        for box in drawn.iter(f"{SVG}rect")
    ]
    assert boxes == [(0, 0, 1000), (0, 22, 750), (0, 44, 250), (750, 22, 250)]
    titles = [title.text for title in drawn.iter(f"{SVG}title")]
    assert titles[1] == "<kernels>: 75.0 µs (75.0%)"
