"""The ledger: nothing committed is lost, nothing uncommitted is seen, and memory comes back."""

from __future__ import annotations

import dataclasses
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, multiple, rule

from protocols.errors import PeerError
from protocols.ledger import HEAD_BYTES, HEAD_WORDS, PAGE, Layout, Word
from protocols.request import SLOT_BITS, Finish, slot_of
from runtime import segment
from runtime.ledger import Ledger, StaleRequest
from tests.runtime.residence import resident

ROOT = Path(__file__).resolve().parents[2]
LAYOUT = Layout(slots=6, tokens=3000, request_bytes=10_000, extra_bytes=5000)


@pytest.fixture
def ledger() -> Iterator[Ledger]:
    made = Ledger.create(LAYOUT)
    yield made
    made.close()


def again(ledger: Ledger) -> Ledger:
    """The ledger as a new incarnation of a process maps it."""
    return Ledger.attach(os.dup(ledger.fd), ledger.layout, ledger.origins)


def claim(ledger: Ledger, origin: int = 0) -> int:
    rid = ledger.claim(origin)
    assert rid is not None
    return rid


def test_a_request_from_claim_to_free(ledger: Ledger) -> None:
    rid = claim(ledger)
    assert ledger.is_current(rid) and ledger.open_rids() == [rid] and ledger.origin(rid) == 0
    assert ledger.request(rid) == b"" and ledger.delivered(rid) == 0
    assert ledger.committed(rid).size == 0 and ledger.extras(rid) == b""
    ledger.put_request(rid, b"the request")
    ledger.commit(rid, [5, 6], b"ab")
    ledger.commit(rid, [7])
    ledger.set_delivered([(rid, 2)], 0)
    ledger.commit(rid, [8], b"c", Finish.STOP)
    other = again(ledger)
    assert other.request(rid) == b"the request"
    assert other.committed(rid).tolist() == [5, 6, 7, 8] and other.committed(rid, 2).tolist() == [7, 8]
    assert other.committed(rid, 4).size == 0
    assert (other.extras(rid), other.finish(rid), other.delivered(rid)) == (b"abc", Finish.STOP, 2)
    ledger.free(rid)
    assert not other.is_current(rid) and other.open_rids() == []
    other.close()


def test_a_finish_may_come_without_tokens(ledger: Ledger) -> None:
    rid = claim(ledger)
    ledger.commit(rid, (), finish=Finish.ABORT)
    assert ledger.finish(rid) is Finish.ABORT and ledger.committed(rid).size == 0


def test_what_lingers_is_open_only_for_those_who_ask(ledger: Ledger) -> None:
    one, two = claim(ledger), claim(ledger)
    ledger.commit(one, [1], finish=Finish.STOP)
    assert ledger.lingers(one) == 0
    ledger.linger(one, 17)
    assert ledger.lingers(one) == 17
    assert ledger.is_current(one) and ledger.open_rids() == [two]
    assert ledger.open_rids(lingering=True) == [one, two]
    slots = ledger.layout.slots
    ledger.free(one)
    again = [claim(ledger) for _ in range(slots - 1)][-1]
    assert slot_of(again) == slot_of(one) and again in ledger.open_rids()


def test_an_outcome_is_one_commit_s(ledger: Ledger) -> None:
    rid = claim(ledger)
    ledger.commit(rid, [1, 2], cached=48)
    ledger.commit(rid, [3], finish=Finish.LENGTH, cached=64)
    tokens, finish = ledger.outcome(rid)
    assert (tokens.tolist(), finish, ledger.cached(rid)) == ([1, 2, 3], Finish.LENGTH, 48)


def test_who_follows_is_forgotten_with_the_request(ledger: Ledger) -> None:
    ledger = Ledger.create(dataclasses.replace(LAYOUT, slots=1))
    rid = claim(ledger)
    ledger.follow(rid, 77)
    assert ledger.followed(rid) == 77
    ledger.free(rid)
    assert ledger.followed(claim(ledger)) == 0
    ledger.close()


def test_extras_of_a_commit_that_was_never_published_do_not_count_later(ledger: Ledger) -> None:
    rid = claim(ledger)
    ledger.commit(rid, [1], b"first")
    raw = segment.Mapping(os.dup(ledger.fd), ledger.layout.heads)
    word = slot_of(rid) * HEAD_WORDS + Word.COMMITTED
    before = raw.words[word]
    ledger.commit(rid, [2], b"lost")
    raw.words[word] = before
    ledger.commit(rid, [2, 3])
    assert ledger.extras(rid) == b"first"
    ledger.commit(rid, [4], b" second")
    assert (ledger.committed(rid).tolist(), ledger.extras(rid)) == ([1, 2, 3, 4], b"first second")
    raw.close()


def test_a_stale_id_is_refused_everywhere(ledger: Ledger) -> None:
    layout = dataclasses.replace(LAYOUT, slots=1)
    ledger = Ledger.create(layout)
    old = claim(ledger)
    ledger.put_request(old, b"old")
    ledger.commit(old, [1, 2, 3], b"x", Finish.LENGTH)
    ledger.free(old)
    new = claim(ledger)
    for rid in (old, new + (1 << SLOT_BITS), 1 << SLOT_BITS | 77):
        for touch in (
            lambda rid=rid: ledger.request(rid),
            lambda rid=rid: ledger.put_request(rid, b"x"),
            lambda rid=rid: ledger.commit(rid, [9]),
            lambda rid=rid: ledger.committed(rid),
            lambda rid=rid: ledger.extras(rid),
            lambda rid=rid: ledger.finish(rid),
            lambda rid=rid: ledger.delivered(rid),
            lambda rid=rid: ledger.origin(rid),
            lambda rid=rid: ledger.outcome(rid),
            lambda rid=rid: ledger.cached(rid),
            lambda rid=rid: ledger.linger(rid, 1),
            lambda rid=rid: ledger.follow(rid, 1),
            lambda rid=rid: ledger.followed(rid),
            lambda rid=rid: ledger.free(rid),
        ):
            with pytest.raises(StaleRequest):
                touch()
        assert not ledger.is_current(rid)
    assert ledger.request(new) == b"" and ledger.committed(new).size == 0 and ledger.extras(new) == b""
    assert ledger.finish(new) is Finish.NONE and ledger.delivered(new) == 0
    ledger.commit(new, [4], b"y")
    assert (ledger.committed(new).tolist(), ledger.extras(new)) == ([4], b"y")
    ledger.close()


def test_a_reader_whose_request_is_replaced_while_it_copies_is_told(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    rid = claim(ledger)
    ledger.put_request(rid, b"mine")
    frontend = again(ledger)
    pread = os.pread

    def slow(fd: int, size: int, offset: int) -> bytes:
        frontend.free(rid)
        return pread(fd, size, offset)

    monkeypatch.setattr(os, "pread", slow)
    with pytest.raises(StaleRequest):
        ledger.request(rid)
    frontend.close()


def test_ids_never_repeat_and_slots_come_around(ledger: Ledger) -> None:
    seen = set()
    for _ in range(5 * LAYOUT.slots):
        rid = claim(ledger)
        ledger.free(rid)
        seen.add(rid)
    assert len(seen) == 5 * LAYOUT.slots
    assert {slot_of(rid) for rid in seen} == set(range(LAYOUT.slots))
    assert {rid >> SLOT_BITS for rid in seen} == {1, 2, 3, 4, 5}


def test_frontends_claim_from_their_own_ranges() -> None:
    ledger = Ledger.create(dataclasses.replace(LAYOUT, slots=7), origins=3)
    slots = [[slot_of(rid) for rid in iter(lambda o=origin: ledger.claim(o), None)] for origin in range(3)]
    assert slots == [[0, 1], [2, 3], [4, 5, 6]]
    assert [ledger.origin(rid) for rid in ledger.open_rids()] == [0, 0, 1, 1, 2, 2, 2]
    with pytest.raises(ValueError, match="frontend 3 of 3"):
        ledger.claim(3)
    ledger.close()


def test_a_new_frontend_sees_which_slots_are_open(ledger: Ledger) -> None:
    kept, freed = claim(ledger), claim(ledger)
    ledger.free(freed)
    successor = again(ledger)
    claimed = list(iter(lambda: successor.claim(0), None))
    assert len(claimed) == LAYOUT.slots - 1 and slot_of(kept) not in map(slot_of, claimed)
    assert len({*claimed, kept, freed}) == LAYOUT.slots + 1
    successor.close()


def test_limits_are_refused_and_change_nothing(ledger: Ledger) -> None:
    rid = claim(ledger)
    ledger.commit(rid, [1], b"e")
    with pytest.raises(ValueError, match="exceeds"):
        ledger.put_request(rid, bytes(LAYOUT.request_bytes + 1))
    with pytest.raises(ValueError, match="at most"):
        ledger.commit(rid, [1] * LAYOUT.tokens)
    with pytest.raises(ValueError, match="exceed"):
        ledger.commit(rid, [2], bytes(LAYOUT.extra_bytes))
    with pytest.raises(ValueError, match="belong to tokens"):
        ledger.commit(rid, [], b"e")
    assert (ledger.committed(rid).tolist(), ledger.extras(rid), ledger.request(rid)) == ([1], b"e", b"")
    ledger.put_request(rid, bytes(LAYOUT.request_bytes))
    ledger.commit(rid, [2] * (LAYOUT.tokens - 1), bytes(LAYOUT.extra_bytes - 1))
    assert len(ledger.committed(rid)) == LAYOUT.tokens and len(ledger.extras(rid)) == LAYOUT.extra_bytes
    assert ledger.request(rid) == bytes(LAYOUT.request_bytes)


def test_one_token_to_each_of_many(ledger: Ledger) -> None:
    unborn, finished, listed, plain = rids = [claim(ledger) for _ in range(4)]
    ledger.commit(finished, [1], finish=Finish.STOP)
    ledger.commit(listed, [0, 1, 2], b"abc")
    ledger.commit(plain, [0])
    stale = [plain + (1 << SLOT_BITS), 1 << SLOT_BITS | 77]
    for step in range(1, 30):
        left = ledger.commit_each([*rids, *stale], [step] * 6)
        assert left == ([0, 1, 4, 5] if step >= 6 else [0, 1, 2, 4, 5])
        if step < 6:  # up to a multiple of eight they go where those before them are
            ledger.commit(listed, [step])
        assert ledger.committed(plain).tolist() == [*range(step + 1)]
    assert ledger.committed(plain, 20).tolist() == [*range(20, 30)]
    assert ledger.committed(plain, 29).tolist() == [29] and ledger.committed(plain, 31).size == 0
    ledger.commit(plain, [50, 51], b"x", Finish.LENGTH)
    assert ledger.outcome(plain)[0].tolist() == [*range(30), 50, 51]
    assert ledger.committed(listed).tolist() == [0, 1, 2, *range(1, 30)] and ledger.extras(listed) == b"abc"
    assert ledger.committed(unborn).size == 0 and ledger.committed(finished).tolist() == [1]


def test_after_the_finish_nothing_is_committed(ledger: Ledger) -> None:
    rid = claim(ledger)
    ledger.commit(rid, [1], finish=Finish.STOP)
    with pytest.raises(ValueError, match="has finished"):
        ledger.commit(rid, [2])


def test_what_is_no_ledger_of_this_layout_is_not_attached(ledger: Ledger) -> None:
    with pytest.raises(PeerError, match="no ledger of this layout"):
        Ledger.attach(os.dup(ledger.fd), dataclasses.replace(LAYOUT, tokens=9000))
    with pytest.raises(ValueError, match="slots"):
        Ledger.create(dataclasses.replace(LAYOUT, slots=1 << SLOT_BITS | 1))
    with pytest.raises(ValueError, match="tokens"):
        Ledger.create(dataclasses.replace(LAYOUT, tokens=1 << 27))


def test_a_big_ledger_takes_memory_only_where_it_is_written_and_gives_it_back() -> None:
    ledger = Ledger.create(Layout(slots=1024, tokens=131_072, request_bytes=1 << 20, extra_bytes=8 << 20))
    assert ledger.layout.size > 8 << 30
    empty = resident(ledger.fd)
    assert empty <= 1024 * HEAD_BYTES + PAGE
    rids = [claim(ledger) for _ in range(1024)]
    assert ledger.claim(0) is None
    assert resident(ledger.fd) == empty, "an open slot without tokens takes nothing"
    for rid in rids[:100]:
        ledger.put_request(rid, bytes(10_000))
        ledger.commit(rid, [1] * 2000, bytes(100))
    assert resident(ledger.fd) == empty + 100 * (3 + 2 + 1) * PAGE
    for rid in rids[100:200]:
        assert ledger.request(rid) == b"" and ledger.committed(rid).size == 0
    assert resident(ledger.fd) == empty + 100 * (3 + 2 + 1) * PAGE, "reading takes nothing"
    for rid in rids:
        ledger.free(rid)
    assert resident(ledger.fd) == empty
    ledger.close()


def test_a_frontend_killed_inside_free_leaves_no_memory_behind(ledger: Ledger) -> None:
    empty = resident(ledger.fd)
    rid = claim(ledger)
    ledger.put_request(rid, bytes(9000))
    raw = segment.Mapping(os.dup(ledger.fd), PAGE)
    raw.words[slot_of(rid) * HEAD_WORDS + Word.STATE] = rid >> SLOT_BITS << 1
    successor = again(ledger)
    assert resident(ledger.fd) > empty
    assert successor.claim(0) is not None
    assert resident(ledger.fd) == empty
    raw.close()
    successor.close()


@dataclasses.dataclass
class Model:
    """What a request is to its users."""

    origin: int
    request: bytes = b""
    tokens: list[int] = dataclasses.field(default_factory=list)
    extras: bytes = b""
    finish: Finish = Finish.NONE
    delivered: int = 0


class LedgerMachine(RuleBasedStateMachine):
    """A ledger and a dict, under three writers that die at any store and are replaced."""

    rids: Bundle[int] = Bundle("rids")

    def __init__(self) -> None:
        super().__init__()
        self.ledger = Ledger.create(dataclasses.replace(LAYOUT, slots=5), origins=2)
        self.open: dict[int, Model] = {}
        self.gone: set[int] = set()

    @rule(target=rids, origin=st.integers(0, 1))
    def claim(self, origin: int) -> object:
        rid = self.ledger.claim(origin)
        full = sum(model.origin == origin for model in self.open.values()) == 2 + origin
        assert (rid is None) == full
        if rid is None:
            return multiple()
        assert rid not in self.open and rid not in self.gone
        self.open[rid] = Model(origin)
        return rid

    @rule(rid=consumes(rids))
    def free(self, rid: int) -> None:
        self.ledger.free(rid)
        del self.open[rid]
        self.gone.add(rid)

    @rule(rid=rids, record=st.binary(max_size=64), stretch=st.sampled_from([1, 150]))
    def put_request(self, rid: int, record: bytes, stretch: int) -> None:
        self.ledger.put_request(rid, record * stretch)
        self.open[rid].request = record * stretch

    @rule(
        rid=rids,
        tokens=st.lists(st.integers(0, 2**31 - 1), max_size=5),
        extras=st.binary(max_size=8),
        finish=st.sampled_from([Finish.NONE, Finish.NONE, Finish.NONE, *Finish]),
        killed=st.booleans(),
    )
    def commit(self, rid: int, tokens: list[int], extras: bytes, finish: Finish, killed: bool) -> None:
        model = self.open[rid]
        if model.finish or (extras and not (tokens or finish)):
            with pytest.raises(ValueError, match=r"has finished|belong to tokens"):
                self.ledger.commit(rid, tokens, extras, finish)
            return
        raw = segment.Mapping(os.dup(self.ledger.fd), self.ledger.layout.heads)
        word = slot_of(rid) * HEAD_WORDS + Word.COMMITTED
        before = raw.words[word]
        self.ledger.commit(rid, tokens, extras, finish)
        if killed:  # before its last store
            raw.words[word] = before
            self.replace()
        else:
            model.tokens += tokens
            model.extras += extras
            model.finish = finish
        raw.close()

    @rule(steps=st.integers(1, 12), killed=st.integers(0, 3))
    def commit_each(self, steps: int, killed: int) -> None:
        """Steps of a token each for all; in the last one some stores are never reached."""
        rids = [*self.open, *self.gone][:8]
        raw = segment.Mapping(os.dup(self.ledger.fd), self.ledger.layout.heads)
        words = {rid: slot_of(rid) * HEAD_WORDS + Word.COMMITTED for rid in rids}
        for step in range(steps):
            before = {rid: raw.words[word] for rid, word in words.items()}
            left = self.ledger.commit_each(rids, [7 * step] * len(rids))
            for index, rid in enumerate(rids):
                model = self.open.get(rid)
                if model is None or model.finish or not model.tokens:
                    assert index in left
                elif index not in left and step == steps - 1 and killed:
                    raw.words[words[rid]] = before[rid]
                    killed -= 1
                elif index not in left:
                    model.tokens.append(7 * step)
        raw.close()
        self.replace()

    @rule(served=st.lists(st.integers(0, 2**31), max_size=5), origin=st.integers(0, 1))
    def deliver_each(self, served: list[int], origin: int) -> None:
        rids = [*self.gone, *self.open][-5:]
        self.ledger.set_delivered(zip(rids, served, strict=False), origin)
        for rid, n in zip(rids, served, strict=False):
            if rid in self.open and self.open[rid].origin == origin:
                self.open[rid].delivered = n

    @rule(rid=rids, n=st.integers(0, 2**31))
    def deliver(self, rid: int, n: int) -> None:
        self.ledger.set_delivered([(rid, n)], self.open[rid].origin)
        self.open[rid].delivered = n

    @rule()
    def replace(self) -> None:
        successor = again(self.ledger)
        self.ledger.close()
        self.ledger = successor

    @invariant()
    def agrees_with_the_model(self) -> None:
        assert set(self.ledger.open_rids()) == set(self.open)
        for rid, model in self.open.items():
            assert self.ledger.committed(rid).tolist() == model.tokens
            seen = Model(
                self.ledger.origin(rid),
                self.ledger.request(rid),
                model.tokens,
                self.ledger.extras(rid),
                self.ledger.finish(rid),
                self.ledger.delivered(rid),
            )
            assert seen == model
        assert not any(map(self.ledger.is_current, self.gone))

    def teardown(self) -> None:
        self.ledger.close()


TestLedgerMachine = LedgerMachine.TestCase
TestLedgerMachine.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


FULL_DISK = """
import errno, os, sys
from protocols.ledger import Layout
from runtime.ledger import Ledger

layout = Layout(slots=4, tokens=100_000, request_bytes=100_000, extra_bytes=100_000)
fd = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
os.ftruncate(fd, layout.size)
os.posix_fallocate(fd, 0, layout.heads)
ledger = Ledger.attach(fd, layout)
rids = [ledger.claim(0) for _ in range(4)]
ledger.put_request(rids[0], b"r" * 20_000)
committed = {rid: [] for rid in rids}
refused = 0
for turn in range(40):
    for rid in rids:
        tokens = [turn] * 700
        try:
            ledger.commit(rid, tokens, b"x" * 300)
        except OSError as error:
            assert error.errno == errno.ENOSPC, error
            refused += 1
        else:
            committed[rid] += tokens
assert refused > 10, refused
try:
    ledger.put_request(rids[1], b"q" * 90_000)
except OSError as error:
    assert error.errno == errno.ENOSPC, error
assert ledger.request(rids[1]) == b"" and ledger.request(rids[0]) == b"r" * 20_000
for rid in rids:
    assert ledger.committed(rid).tolist() == committed[rid]
    assert len(ledger.extras(rid)) == len(committed[rid]) // 700 * 300
ledger.free(rids[0])
ledger.commit(rids[1], [1] * 700)
print("clean")
"""


def test_a_full_shm_is_an_os_error_and_never_a_signal(tmp_path: Path) -> None:
    """A tmpfs of 128 KiB in a mount namespace of its own, where the machine allows one."""
    unshare = shutil.which("unshare")
    inside = [unshare or "", "--user", "--map-root-user", "--mount"]
    if unshare is None or subprocess.run([*inside, "true"], capture_output=True, check=False).returncode:
        pytest.skip("no user namespaces here")
    mount = 'mount -t tmpfs -o size=128k none "$1" && exec "$2" -c "$3" "$1/ledger"'
    done = subprocess.run(
        [*inside, "sh", "-c", mount, "sh", str(tmp_path), sys.executable, FULL_DISK],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "clean\n"), done.stderr


def test_a_scheduler_killed_at_random_leaves_a_prefix_of_what_it_meant() -> None:
    """Real processes: each incarnation goes on where the words say the last one stopped."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.runtime.ledger_campaign", os.environ.get("TROUPE_LEDGER_KILLS", "100")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_random_requests_do_not_mix() -> None:
    draw = random.Random(3)
    ledger = Ledger.create(dataclasses.replace(LAYOUT, slots=50))
    models: dict[int, list[int]] = {}
    for _ in range(3000):
        if models and draw.random() < 0.1:
            rid = draw.choice(list(models))
            assert ledger.committed(rid).tolist() == models.pop(rid)
            ledger.free(rid)
        elif draw.random() < 0.2:
            rid = ledger.claim(0)
            if rid is not None:
                models[rid] = []
        elif models:
            rid = draw.choice(list(models))
            tokens = [draw.randrange(1 << 31) for _ in range(draw.randrange(1, 4))]
            ledger.commit(rid, tokens)
            models[rid] += tokens
    assert all(ledger.committed(rid).tolist() == tokens for rid, tokens in models.items())
    ledger.close()
