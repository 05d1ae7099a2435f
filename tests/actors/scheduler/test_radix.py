"""The radix tree against a naive model: a dict from whole prefixes to pages, one entry a page."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from actors.scheduler.radix import Node, RadixTree, common_pages

PAGE = 2
PAGE_BYTES = PAGE * 4

prompts = st.lists(st.integers(0, 1), max_size=14).map(tuple)
spaces = st.sampled_from(["", "tenant"])


def encode(tokens: tuple[int, ...]) -> bytes:
    return np.array(tokens, "<i4").tobytes()


@dataclasses.dataclass
class Held:
    """A lock: what the tree gave, and the tokens up to the locked node."""

    space: str
    node: Node
    tokens: tuple[int, ...]


class Model:
    """Every cached page by (namespace, prefix that ends with it): its number, its locks, its last use."""

    def __init__(self) -> None:
        self.pages: dict[tuple[str, tuple[int, ...]], int] = {}
        self.locks: dict[tuple[str, tuple[int, ...]], int] = {}
        self.used: dict[tuple[str, tuple[int, ...]], int] = {}
        self.clock = 0

    def prefixes(self, tokens: tuple[int, ...], limit: int) -> list[tuple[int, ...]]:
        count = min(limit, len(tokens) // PAGE)
        return [tokens[: PAGE * (index + 1)] for index in range(count)]

    def match(self, space: str, tokens: tuple[int, ...], limit: int) -> list[int]:
        found: list[int] = []
        for prefix in self.prefixes(tokens, limit):
            if (space, prefix) not in self.pages:
                break
            found.append(self.pages[space, prefix])
        return found

    def touch(self, space: str, tokens: tuple[int, ...], locks: int) -> None:
        self.clock += 1
        for prefix in self.prefixes(tokens, len(tokens)):
            self.locks[space, prefix] += locks
            self.used[space, prefix] = self.clock

    def add(self, space: str, prefix: tuple[int, ...], page: int, locks: int) -> None:
        self.pages[space, prefix] = page
        self.locks[space, prefix] = locks
        self.used[space, prefix] = self.clock

    def evict(self, count: int) -> list[int]:
        freed: list[int] = []
        while len(freed) < count:
            leaves = [
                key
                for key in self.pages
                if not self.locks[key] and not any(self._extends(other, key) for other in self.pages)
            ]
            if not leaves:
                break
            victim = min(leaves, key=lambda key: self.used[key])
            freed.append(self.pages.pop(victim))
        return freed

    @staticmethod
    def _extends(other: tuple[str, tuple[int, ...]], key: tuple[str, tuple[int, ...]]) -> bool:
        return other[0] == key[0] and len(other[1]) > len(key[1]) and other[1][: len(key[1])] == key[1]


class TreeMachine(RuleBasedStateMachine):
    """Everything that sequences do with the tree, in any order."""

    locks = Bundle("locks")

    def __init__(self) -> None:
        super().__init__()
        self.tree = RadixTree(PAGE)
        self.model = Model()
        self.next_page = 0

    def fresh(self, count: int) -> list[int]:
        self.next_page += count
        return list(range(self.next_page - count, self.next_page))

    @rule(target=locks, space=spaces, tokens=prompts, limit=st.integers(0, 8))
    def acquire(self, space: str, tokens: tuple[int, ...], limit: int) -> Held:
        expected = self.model.match(space, tokens, limit)
        assert self.tree.probe(space, encode(tokens), limit) == len(expected)
        node, pages = self.tree.acquire(space, encode(tokens), limit)
        assert pages == expected
        held = Held(space, node, tokens[: PAGE * len(pages)])
        self.model.touch(space, held.tokens, 1)
        return held

    @rule(held=consumes(locks))
    def release(self, held: Held) -> None:
        self.tree.release(held.node)
        self.model.touch(held.space, held.tokens, -1)

    @rule(target=locks, held=consumes(locks), more=prompts)
    def publish(self, held: Held, more: tuple[int, ...]) -> Held:
        count = len(more) // PAGE
        if not count:
            return held
        whole = held.tokens + more[: count * PAGE]
        pages = self.fresh(count)
        leaf = self.tree.publish(held.node, encode(whole[len(held.tokens) :]), pages)
        if (held.space, whole[: len(held.tokens) + PAGE]) in self.model.pages:
            assert leaf is None
            return held
        assert leaf is not None
        for index, page in enumerate(pages):
            self.model.add(held.space, whole[: len(held.tokens) + PAGE * (index + 1)], page, 1)
        return Held(held.space, leaf, whole)

    @rule(held=locks, more=prompts)
    def insert(self, held: Held, more: tuple[int, ...]) -> None:
        count = len(more) // PAGE
        whole = held.tokens + more[: count * PAGE]
        pages = self.fresh(count)
        refused = self.tree.insert(held.node, encode(whole[len(held.tokens) :]), pages)
        expected: list[int] = []
        for index, page in enumerate(pages):
            prefix = whole[: len(held.tokens) + PAGE * (index + 1)]
            if (held.space, prefix) in self.model.pages:
                expected.append(page)
            else:
                self.model.clock += not any(p in pages for p in self.model.pages.values())
                self.model.add(held.space, prefix, page, 0)
        assert refused == expected

    @rule(count=st.integers(0, 6))
    def evict(self, count: int) -> None:
        assert sorted(self.tree.evict(count)) == sorted(self.model.evict(count))

    @invariant()
    def agrees(self) -> None:
        assert self.tree.pages() == set(self.model.pages.values())
        locked = sum(self.model.locks[key] > 0 for key in self.model.pages)
        assert (self.tree.locked, self.tree.evictable) == (locked, len(self.model.pages) - locked)


TestTree = TreeMachine.TestCase
TestTree.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)


def test_common_pages_counts_whole_pages_only() -> None:
    one, other = encode((1, 2, 3, 4, 5, 6)), encode((1, 2, 3, 9, 5, 6))
    assert common_pages(one, other, PAGE_BYTES) == 1
    assert common_pages(one, one, PAGE_BYTES) == 3
    assert common_pages(one, one[:8], PAGE_BYTES) == 1
    assert common_pages(one, b"", PAGE_BYTES) == 0


def test_unlocking_twice_is_found() -> None:
    tree = RadixTree(PAGE)
    node, _ = tree.acquire("", encode((1, 2)), 1)
    tree.release(node)
    with pytest.raises(AssertionError, match="twice"):
        tree.release(node)


def test_an_empty_namespace_leaves_nothing_behind() -> None:
    tree = RadixTree(PAGE)
    for tenant in range(50):
        node, _ = tree.acquire(str(tenant), encode((1, 2, 3, 4)), 2)
        tree.insert(node, encode((1, 2, 3, 4)), [2 * tenant, 2 * tenant + 1])
        tree.release(node)
    assert sorted(tree.evict(1000)) == list(range(100))
    assert list(tree.nodes()) == []


def test_the_list_of_idle_leaves_stays_short() -> None:
    tree = RadixTree(PAGE)
    tokens = encode((1, 2, 3, 4))
    node, _ = tree.acquire("", tokens, 2)
    tree.insert(node, tokens, [0, 1])
    tree.release(node)
    for _ in range(1000):
        tree.release(tree.acquire("", tokens, 2)[0])
    assert len(tree._idle) <= 100
    assert sorted(tree.evict(2)) == [0, 1]
