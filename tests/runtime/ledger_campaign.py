"""Kill the process that commits, again and again, and check what the ledger says after each death.

`python -m tests.runtime.ledger_campaign 100000` prints what it saw and exits 0, or dies of an assertion.
"""

from __future__ import annotations

import random
import sys
import time
from functools import partial

from protocols.ledger import Layout
from runtime.ledger import Ledger
from tests.runtime.ring_campaign import kill, spawn

LAYOUT = Layout(slots=3, tokens=2_000_000, request_bytes=0, extra_bytes=16_000_000)


def token(rid: int, index: int) -> int:
    return (index * 2654435761 + rid) % (1 << 31)


def extra(index: int) -> bytes:
    return index.to_bytes(8, "little")


def commit(fd: int) -> None:
    """Go on committing to every open request where the ledger says it stands."""
    ledger = Ledger.attach(fd, LAYOUT)
    rids = ledger.open_rids()
    counts = {rid: len(ledger.committed(rid)) for rid in rids}
    while True:
        for rid in rids:
            start = counts[rid]
            end = start + 1 + start % 3
            tokens = [token(rid, index) for index in range(start, end)]
            ledger.commit(rid, tokens, b"".join(map(extra, range(start, end))) if start % 2 else b"")
            counts[rid] = end


def expected_extras(count: int) -> bytes:
    """All extras of the first `count` tokens, as the commits above cut them."""
    data, start = [], 0
    while start < count:
        end = start + 1 + start % 3
        if start % 2:
            data += [extra(index) for index in range(start, end)]
        start = end
    assert start == count, "a commit was torn"
    return b"".join(data)


def campaign(kills: int) -> str:
    draw = random.Random(4)
    ledger = Ledger.create(LAYOUT)
    rids = [ledger.claim(0) for _ in range(LAYOUT.slots)]
    total = 0
    for _ in range(kills):
        pid = spawn(partial(commit, ledger.fd))
        time.sleep(draw.random() * 0.01)
        kill(pid)
        for turn, rid in enumerate(rids):
            assert rid is not None
            tokens = ledger.committed(rid).tolist()
            assert tokens == [token(rid, index) for index in range(len(tokens))]
            assert ledger.extras(rid) == expected_extras(len(tokens))
            if len(tokens) > 3000:
                ledger.free(rid)
                rids[turn] = ledger.claim(0)
                total += len(tokens)
    return f"{kills} kills, {total} tokens"


if __name__ == "__main__":
    print(campaign(int(sys.argv[1])))
