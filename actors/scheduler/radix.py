"""The radix tree: which pages hold the KV of which token prefixes.

A node is a run of whole pages; its key is their token ids as int32 bytes, so that comparing is memcmp and
finding a child is a dict look-up by the bytes of one page. Each namespace (LoRA adapter and cache
salt) has a root of its own, so that tenants never see each other's prefixes.

    root ── [system prompt ....] ──┬── [question A ..][answer A]
                                   └── [question B ......]

A sequence locks the node where its prefix ends; a lock counts on every node up to the root, therefore
`locks` of a node is at least the sum of its children's, and what is unlocked hangs below what is locked.
Unlocked leaves are evicted from their end, least recently used first.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator

import numpy as np

_SLACK = 64


class Node:
    """A run of pages below `parent`. `used` is the tree's clock at the last lock or unlock through here."""

    __slots__ = ("children", "key", "locks", "namespace", "pages", "parent", "used")

    def __init__(self, namespace: str, parent: Node | None, key: bytes, pages: list[int], used: int) -> None:
        self.namespace = namespace
        self.parent = parent
        self.key = key
        self.pages = pages
        self.used = used
        self.locks = 0
        self.children: dict[bytes, Node] = {}


class RadixTree:
    """Prefixes of whole pages. The tree owns the pages it holds until `evict` gives them back.

    Costs: matching and locking O(length / page), mostly memcmp; evicting O(log leaves) a leaf.
    """

    def __init__(self, page_size: int) -> None:
        self.page_bytes = page_size * 4
        self.total = 0
        self.locked = 0
        self._roots: dict[str, Node] = {}
        self._clock = 0
        self._pushes = 0
        self._nodes = 0
        self._idle: list[tuple[int, int, Node]] = []

    @property
    def evictable(self) -> int:
        """Pages that `evict` can give back."""
        return self.total - self.locked

    def probe(self, namespace: str, tokens: bytes, limit: int) -> int:
        """Pages at the start of `tokens` that the tree holds, `limit` at most; changes nothing."""
        root = self._roots.get(namespace)
        return self._walk(root, tokens, limit)[1] if root is not None else 0

    def acquire(self, namespace: str, tokens: bytes, limit: int) -> tuple[Node, list[int]]:
        """Lock the longest prefix of `tokens` that the tree holds, `limit` pages at most.

        Returns the node where it ends, for `release`, and its pages in order.
        """
        root = self._roots.get(namespace)
        if root is None:
            root = self._roots[namespace] = Node(namespace, None, b"", [], self._clock)
        node, _, beyond = self._walk(root, tokens, limit)
        if beyond is not None:
            node = self._split(*beyond)
        self._lock(node)
        return node, _path_pages(node)

    def release(self, node: Node) -> None:
        """Undo one `acquire` or `publish`: `node` was what it returned."""
        self._clock += 1
        step: Node | None = node
        while step is not None:
            assert step.locks > 0, "a prefix was unlocked twice"
            step.locks -= 1
            step.used = self._clock
            if step.locks == 0:
                self.locked -= len(step.pages)
            step = step.parent
        self._rest(node)

    def publish(self, node: Node, key: bytes, pages: list[int]) -> Node | None:
        """Hang `pages` below `node`, whose lock the caller holds and which moves to the new node.

        None, and nothing changes, when the tree already holds the first of them.
        """
        first = key[: self.page_bytes]
        if first in node.children:
            return None
        leaf = self._hang(node, key, pages)
        leaf.locks = 1
        self.locked += len(pages)
        return leaf

    def insert(self, node: Node, key: bytes, pages: list[int]) -> list[int]:
        """Like `publish`, but unlocked, and below whatever is there already.

        Returns those of `pages` that the tree did not take because it holds their tokens already.
        """
        node, present, beyond = self._walk(node, key, len(pages))
        if present == len(pages):
            return pages
        if beyond is not None:
            node = self._split(*beyond)
        self._clock += 1
        leaf = self._hang(node, key[present * self.page_bytes :], pages[present:])
        self._rest(leaf)
        return pages[:present]

    def evict(self, count: int) -> list[int]:
        """`count` pages of unlocked leaves, or all there are, least recently used first."""
        freed: list[int] = []
        while len(freed) < count and self._idle:
            entry = heapq.heappop(self._idle)
            if self._is_current(entry):
                freed += self._cut(entry[2], count - len(freed))
        return freed

    def nodes(self) -> Iterator[Node]:
        """Every node, roots included, parents first."""
        stack = list(self._roots.values())
        while stack:
            node = stack.pop()
            yield node
            stack.extend(node.children.values())

    def pages(self) -> frozenset[int]:
        """Every page held; AssertionError when a count or a link is wrong."""
        held: list[int] = []
        locked = 0
        for node in self.nodes():
            held += node.pages
            locked += len(node.pages) if node.locks else 0
            assert len(node.key) == len(node.pages) * self.page_bytes, "key and pages differ in length"
            assert node.locks >= sum(child.locks for child in node.children.values()), "a lock stops half way"
            for first, child in node.children.items():
                assert child.parent is node and child.key[: self.page_bytes] == first, "a broken link"
                assert child.pages, "an empty node"
        distinct = frozenset(held)
        assert len(distinct) == len(held) == self.total, "a page is in the tree twice, or not counted"
        assert locked == self.locked, "the count of locked pages is wrong"
        return distinct

    def _walk(self, node: Node, tokens: bytes, limit: int) -> tuple[Node, int, tuple[Node, int] | None]:
        """Follow `tokens` down from `node`, `limit` pages at most.

        Returns the last node matched to its end, the pages matched in all, and (child, pages matched in
        it) where the match ends inside a child.
        """
        at, end, size = 0, min(limit * self.page_bytes, len(tokens)), self.page_bytes
        while at + size <= end:
            child = node.children.get(tokens[at : at + size])
            if child is None:
                break
            same = common_pages(child.key, tokens[at : min(at + len(child.key), end)], size)
            at += same * size
            if same < len(child.pages):
                return node, at // size, (child, same)
            node = child
        return node, at // size, None

    def _split(self, node: Node, pages: int) -> Node:
        """Cut `node` after `pages` pages; the node itself stays the lower part, so locks held on it hold."""
        parent = node.parent
        assert parent is not None and 0 < pages < len(node.pages)
        cut = pages * self.page_bytes
        upper = Node(node.namespace, parent, node.key[:cut], node.pages[:pages], node.used)
        upper.locks = node.locks
        parent.children[node.key[: self.page_bytes]] = upper
        node.key, node.pages, node.parent = node.key[cut:], node.pages[pages:], upper
        upper.children[node.key[: self.page_bytes]] = node
        self._nodes += 1
        return upper

    def _hang(self, parent: Node, key: bytes, pages: list[int]) -> Node:
        leaf = Node(parent.namespace, parent, key, pages, self._clock)
        parent.children[key[: self.page_bytes]] = leaf
        self.total += len(pages)
        self._nodes += 1
        return leaf

    def _lock(self, node: Node) -> None:
        self._clock += 1
        step: Node | None = node
        while step is not None:
            if step.locks == 0:
                self.locked += len(step.pages)
            step.locks += 1
            step.used = self._clock
            step = step.parent

    def _is_idle(self, node: Node) -> bool:
        return not node.locks and not node.children and bool(node.pages)

    def _rest(self, node: Node) -> None:
        """Note that `node` may have become an unlocked leaf (or an unlocked root that holds nothing)."""
        if node.locks or node.children:
            return
        if node.parent is None:
            self._roots.pop(node.namespace, None)
            return
        self._pushes += 1
        heapq.heappush(self._idle, (node.used, self._pushes, node))
        if len(self._idle) > 2 * self._nodes + _SLACK:
            self._idle = [entry for entry in self._idle if self._is_current(entry)]
            heapq.heapify(self._idle)

    def _is_current(self, entry: tuple[int, int, Node]) -> bool:
        used, _, node = entry
        return node.used == used and self._is_idle(node)

    def _cut(self, leaf: Node, count: int) -> list[int]:
        """Take up to `count` pages from the end of `leaf`; an emptied leaf leaves the tree."""
        count = min(count, len(leaf.pages))
        kept = len(leaf.pages) - count
        freed = leaf.pages[kept:]
        first = leaf.key[: self.page_bytes]
        leaf.pages, leaf.key = leaf.pages[:kept], leaf.key[: kept * self.page_bytes]
        self.total -= count
        if kept:
            self._rest(leaf)
            return freed
        parent = leaf.parent
        assert parent is not None
        del parent.children[first]
        self._nodes -= 1
        self._rest(parent)
        return freed


def common_pages(one: bytes, other: bytes, page_bytes: int) -> int:
    """Whole pages at the start of `one` that are at the start of `other` too."""
    if one == other:
        return len(one) // page_bytes
    length = min(len(one), len(other))
    differ = np.frombuffer(one, np.uint8, length) != np.frombuffer(other, np.uint8, length)
    return (int(differ.argmax()) if differ.any() else length) // page_bytes


def _path_pages(node: Node) -> list[int]:
    """Pages from the root to the end of `node`."""
    runs = []
    step: Node | None = node
    while step is not None:
        runs.append(step.pages)
        step = step.parent
    return [page for run in reversed(runs) for page in run]
