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


def cut(start: int) -> int:
    """How many tokens the commit at `start` has: now several, perhaps with extras, now long runs of one."""
    return 1 if start % 24 >= 4 else 1 + start % 3


def extras(start: int) -> bytes:
    """What the commit at `start` has of them."""
    if not start % 2 or start % 24 >= 4:
        return b""
    return b"".join(map(extra, range(start, start + cut(start))))


def commit(fd: int) -> None:
    """Go on committing to every open request where the ledger says it stands."""
    ledger = Ledger.attach(fd, LAYOUT)
    counts = {rid: len(ledger.committed(rid)) for rid in ledger.open_rids()}
    while True:
        single = [rid for rid, start in counts.items() if start % 24 >= 4]
        left = ledger.commit_each(single, [token(rid, counts[rid]) for rid in single])
        together = {rid for index, rid in enumerate(single) if index not in left}
        for rid, start in counts.items():
            end = start + cut(start)
            if rid not in together:
                ledger.commit(rid, [token(rid, index) for index in range(start, end)], extras(start))
            counts[rid] = end


def expected_extras(count: int) -> bytes:
    """All extras of the first `count` tokens, as the commits above cut them."""
    data, start = [], 0
    while start < count:
        data.append(extras(start))
        start += cut(start)
    assert start == count, "a commit was torn"
    return b"".join(data)


def check(ledger: Ledger, rid: int) -> int:
    """Whether what is committed is a prefix of what was meant; how long it is."""
    tokens = ledger.committed(rid).tolist()
    assert tokens == [token(rid, index) for index in range(len(tokens))]
    return len(tokens)


def claim(ledger: Ledger) -> int:
    rid = ledger.claim(0)
    assert rid is not None
    return rid


def campaign(kills: int) -> str:
    draw = random.Random(4)
    ledger = Ledger.create(LAYOUT)
    rids = [claim(ledger) for _ in range(LAYOUT.slots)]
    total = 0
    for _ in range(kills):
        pid = spawn(partial(commit, ledger.fd))
        end = time.monotonic() + draw.random() * 0.01
        while time.monotonic() < end:  # as those read whom a commit does not wait for
            check(ledger, draw.choice(rids))
        kill(pid)
        for turn, rid in enumerate(rids):
            count = check(ledger, rid)
            assert ledger.extras(rid) == expected_extras(count)
            if count > 3000:
                ledger.free(rid)
                rids[turn] = claim(ledger)
                total += count
    return f"{kills} kills, {total} tokens"


if __name__ == "__main__":
    print(campaign(int(sys.argv[1])))
