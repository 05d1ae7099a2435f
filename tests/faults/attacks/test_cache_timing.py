"""What the prefix cache tells a stranger: how much of a prompt is computed, and so how long it takes.

That is deterministic: the tokens that the cache spared. `python -m tools.attack timing` takes the times.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import trio

from tools.attack.timing import CASES, Case, auc, key_file, probe
from tools.chaos.company import Company, company


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Company]:
    """A company with keys whose prefixes are shared, and keys whose are not."""
    with company(("--executor", "hash", "--keys", key_file(tmp_path_factory.mktemp("keys")))) as made:
        trio.run(made.ready)
        yield made
        assert made.end() == []


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_salted_prefix_is_computed_again_for_a_stranger(subject: Company, case: Case) -> None:
    async def main() -> int:
        return (await probe(subject, case, prompts=8, words=40, seed=1)).cached

    cached = trio.run(main)
    assert (cached == 0) is case.secret


def test_auc() -> None:
    assert auc([1, 2], [3, 4]) == 1 and auc([3, 4], [1, 2]) == 0
    assert auc([1, 2, 3], [1, 2, 3]) == 0.5
