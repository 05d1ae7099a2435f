"""The company as data: every shape of it is consistent, and says what DESIGN says."""

from __future__ import annotations

import importlib.util

import pytest

from actors.company import company
from protocols.config import Config, ModelCard
from runtime.tree import check, leaves

CARD = ModelCard("m", "/m", "LlamaForCausalLM", 128, 256, (1,))


@pytest.mark.parametrize("dp", [1, 2, 5])
@pytest.mark.parametrize("frontends", [1, 3])
@pytest.mark.parametrize("tokenizers", [1, 2])
def test_every_shape_is_consistent(dp: int, frontends: int, tokenizers: int) -> None:
    check(company(Config(CARD, dp=dp, frontends=frontends, tokenizers=tokenizers)))


def test_the_balancer_is_in_the_path_only_between_replicas() -> None:
    alone = {child.name: child for child in leaves(company(Config(CARD)).root)}
    assert "balancer" not in alone
    assert "scheduler.0" in alone["tokenizer.0"].sends
    many = {child.name: child for child in leaves(company(Config(CARD, dp=2)).root)}
    assert many["balancer"].sends == ("scheduler.0", "scheduler.1")
    assert "scheduler.0" not in many["tokenizer.0"].sends


def test_only_frontends_listen_and_they_start_last() -> None:
    children = list(leaves(company(Config(CARD, dp=2, frontends=2)).root))
    last = max(child.stage for child in children)
    assert {child.kind for child in children if child.listens} == {"frontend"}
    assert {child.kind for child in children if child.stage == last} == {"frontend"}


def test_every_entry_exists() -> None:
    for child in leaves(company(Config(CARD, dp=2)).root):
        assert importlib.util.find_spec(child.entry.split(":")[0]) is not None, child.entry


def test_every_kind_has_an_understudy_of_its_own() -> None:
    for child in leaves(company(Config(CARD, dp=2)).root):
        assert child.understudy == child.kind
