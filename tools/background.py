"""Work that goes on in a thread while something else is done."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor


@contextlib.contextmanager
def background(work: Callable[[threading.Event], object]) -> Iterator[None]:
    """`work` meanwhile, which is given an event: it is set when the work should end. What the work raises is
    raised once it has ended."""
    over = threading.Event()
    with ThreadPoolExecutor(1) as thread:
        working = thread.submit(work, over)
        try:
            yield
        finally:
            over.set()
    working.result()
