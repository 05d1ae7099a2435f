"""What the radix tree costs when it is full: microseconds to match, insert and evict, 10^6 tokens cached."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from actors.scheduler.radix import RadixTree

LENGTH = 2048


def _prompts(count: int, shared: int) -> list[bytes]:
    """`count` prompts of LENGTH tokens; the first `shared` tokens are one of 16 system prompts."""
    rng = np.random.default_rng(0)
    heads = rng.integers(0, 30000, (16, shared), np.int32)
    tails = rng.integers(0, 30000, (count, LENGTH - shared), np.int32)
    return [heads[i % 16].tobytes() + tails[i].tobytes() for i in range(count)]


def _store(tree: RadixTree, prompt: bytes, first_page: int) -> None:
    pages = len(prompt) // tree.page_bytes
    node, hit = tree.acquire("", prompt, pages)
    rest = list(range(first_page + len(hit), first_page + pages))
    tree.insert(node, prompt[len(hit) * tree.page_bytes :], rest)
    tree.release(node)


def _median_us(act: Callable[[int], object], times: int) -> float:
    costs = []
    for index in range(times):
        start = time.thread_time_ns()
        act(index)
        costs.append(time.thread_time_ns() - start)
    return float(np.median(costs)) / 1000


def tree_costs(tokens: int = 1_000_000, page_size: int = 16) -> dict[str, float]:
    """Median microseconds of each operation on a tree that holds about `tokens` tokens in prompts of
    LENGTH tokens, half of each shared with many others."""
    tree = RadixTree(page_size)
    prompts = _prompts(2 * tokens // LENGTH + 400, LENGTH // 2)
    count = 0
    while tree.total * page_size < tokens:
        _store(tree, prompts[count], count * LENGTH)
        count += 1
    limit = LENGTH // page_size

    def hit(index: int) -> None:
        tree.release(tree.acquire("", prompts[index * 7 % count], limit)[0])

    def miss(index: int) -> None:
        tree.release(tree.acquire("", prompts[index][::-1], limit)[0])

    return {
        "hit": _median_us(hit, 400),
        "miss": _median_us(miss, 400),
        "insert": _median_us(lambda i: _store(tree, prompts[count + i], (count + i) * LENGTH), 400),
        "evict 16 pages": _median_us(lambda _: tree.evict(16), 400),
    }
