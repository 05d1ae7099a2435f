"""The ring: a deque to its users, and deaf to whatever a dying producer or a flipped bit leaves behind."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections import deque
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from protocols.errors import PeerError, StartError
from runtime import segment
from runtime.ring import BATCH_BYTES, MINIMUM, Ring
from tests.runtime.kinds import KINDS, environment, of_kind
from tests.runtime.residence import resident

ROOT = Path(__file__).resolve().parents[2]
TAIL_WORD = 8
DATA = 256
CAPACITY = 256


@pytest.fixture(params=KINDS, autouse=True, scope="module")
def kind(request: pytest.FixtureRequest) -> Iterator[str]:
    with of_kind(request.param):
        yield request.param


@pytest.fixture
def ring() -> Iterator[Ring]:
    made = Ring.create(CAPACITY)
    yield made
    made.close()


def again(ring: Ring) -> Ring:
    """The ring as a new incarnation of a process at one of its ends maps it."""
    return Ring.attach(os.dup(ring.fd))


def mapped(ring: Ring) -> segment.Mapping:
    return segment.Mapping(os.dup(ring.fd), segment.size_of(ring.fd))


def take(ring: Ring, limit: int) -> list[bytes]:
    """The payloads of one batch."""
    batch = ring.read_batch(limit)
    return [] if batch is None else batch[1]


def records(ring: Ring, limit: int = 1000) -> list[tuple[int, bytes]]:
    """Up to `limit` (incarnation, payload), in as many batches as it takes."""
    taken: list[tuple[int, bytes]] = []
    while len(taken) < limit and (batch := ring.read_batch(limit - len(taken))):
        taken += [(batch[0], payload) for payload in batch[1]]
    return taken


def drain(ring: Ring) -> list[bytes]:
    return [payload for _, payload in records(ring)]


def test_records_come_out_as_they_went_in(ring: Ring) -> None:
    assert ring.read_batch(10) is None
    assert ring.write_nowait(b"one", 7) and ring.write_nowait(b"", 7)
    assert ring.read_batch(10) == (7, [b"one", b""])
    assert ring.read_batch(10) is None and ring.used() == 0


def test_a_batch_is_of_one_incarnation(ring: Ring) -> None:
    for incarnation in (7, 7, 8, 9, 9):
        assert ring.write_nowait(b"%d" % incarnation, incarnation)
    assert ring.read_batch(10) == (7, [b"7", b"7"])
    assert ring.read_batch(10) == (8, [b"8"])
    assert ring.read_batch(1) == (9, [b"9"])
    assert ring.read_batch(10) == (9, [b"9"])


def test_full_is_false_and_writes_nothing(ring: Ring) -> None:
    written = 0
    while ring.write_nowait(bytes(40), 1):
        written += 1
    assert written == CAPACITY // 64 and ring.used() == CAPACITY
    assert len(drain(ring)) == written
    assert ring.write_nowait(bytes(40), 1)


def test_any_payload_up_to_the_limit_fits_an_empty_ring_wherever_it_stands(ring: Ring) -> None:
    for step in range(0, CAPACITY, 8):
        assert ring.write_nowait(bytes(step % ring.limit), 1) and drain(ring)
        assert ring.write_nowait(b"x" * ring.limit, 1)
        assert drain(ring) == [b"x" * ring.limit]


def test_a_payload_above_the_limit_is_refused_with_a_sentence(ring: Ring) -> None:
    with pytest.raises(ValueError, match=f"{ring.limit + 1} bytes exceeds this ring's limit of {ring.limit}"):
        ring.write_nowait(bytes(ring.limit + 1), 1)
    assert ring.used() == 0


def test_a_batch_ends_at_its_limits() -> None:
    ring = Ring.create(4 * BATCH_BYTES)
    for _ in range(30):
        assert ring.write_nowait(bytes(BATCH_BYTES // 10), 1)
    assert len(take(ring, 3)) == 3
    assert len(take(ring, 100)) == 10
    assert len(take(ring, 100)) == 10
    ring.close()


def test_padding_longer_than_a_batch_does_not_hide_the_record_behind_it() -> None:
    ring = Ring.create(8 * BATCH_BYTES)
    for size in (3 * BATCH_BYTES, 3 * BATCH_BYTES, 3 * BATCH_BYTES):
        assert ring.write_nowait(bytes(size), 1)
        assert [len(payload) for payload in take(ring, 100)] == [size]
        assert ring.read_batch(100) is None
    ring.close()


@pytest.mark.parametrize("capacity", [0, 8, MINIMUM - 8, MINIMUM + 4])
def test_a_capacity_that_cannot_be_is_refused(capacity: int) -> None:
    with pytest.raises(ValueError, match="capacity"):
        Ring.create(capacity)


def test_what_is_no_ring_is_not_attached() -> None:
    for size in (8, 4096):
        with pytest.raises(PeerError, match="is no ring"):
            Ring.attach(segment.create(size))


def test_other_machines_are_refused_with_a_sentence() -> None:
    with pytest.raises(StartError, match="this machine is aarch64"):
        segment.require_ordered_stores("aarch64")
    segment.require_ordered_stores("x86_64")


def test_no_room_in_shm_is_a_sentence_and_leaves_nothing() -> None:
    shm = os.statvfs("/dev/shm")
    before, descriptors = sorted(os.listdir("/dev/shm")), os.listdir("/proc/self/fd")
    with pytest.raises(StartError, match="no room"):
        Ring.create((shm.f_blocks + 1) * shm.f_frsize)
    assert sorted(os.listdir("/dev/shm")) == before
    assert len(os.listdir("/proc/self/fd")) == len(descriptors)


def test_a_ring_has_no_name_and_all_its_memory(ring: Ring) -> None:
    assert "(deleted)" in os.readlink(f"/proc/self/fd/{ring.fd}")
    assert resident(ring.fd) >= CAPACITY
    assert not os.get_inheritable(ring.fd)


def test_a_cursor_out_of_bounds_is_the_peers_error_and_heals_with_the_next_record(ring: Ring) -> None:
    consumer = again(ring)
    ring.write_nowait(b"a", 1)
    raw = mapped(ring)
    raw.words[TAIL_WORD] = 1 << 60
    with pytest.raises(PeerError, match="cursor"):
        consumer.read_batch(1)
    assert consumer.resync() == 0
    ring.write_nowait(b"b", 1)
    assert drain(consumer) == [b"a", b"b"]
    raw.close()
    consumer.close()


@pytest.mark.parametrize("tail", [1 << 60, 36, 0])
def test_a_producer_that_finds_a_nonsense_cursor_begins_where_the_consumer_stands(
    ring: Ring, tail: int
) -> None:
    """36 is near, but no record ends there; and before 0 there was nothing."""
    consumer = again(ring)
    for payload in (b"a", b"b"):
        ring.write_nowait(payload, 1)
    assert take(consumer, 1) == [b"a"]
    raw = mapped(ring)
    raw.words[TAIL_WORD] = tail
    successor = again(ring)
    with pytest.raises(PeerError, match="cursor"):
        consumer.read_batch(1)
    assert consumer.resync() == 0
    assert successor.write_nowait(b"c", 2)
    assert drain(consumer) == [b"c"]
    for each in (raw, consumer, successor):
        each.close()


def test_a_nonsense_head_stops_the_producer() -> None:
    ring = Ring.create(MINIMUM)
    raw = mapped(ring)
    raw.words[16] = 1 << 60
    with pytest.raises(PeerError, match="consumer's cursor"):
        for _ in range(10):
            ring.write_nowait(b"abc", 1)
    raw.close()
    ring.close()


def test_good_records_before_a_bad_one_are_delivered_first(ring: Ring) -> None:
    for payload in (b"good", b"fine", b"damaged", b"behind"):
        ring.write_nowait(payload, 1)
    raw = mapped(ring)
    raw.data[DATA + 2 * 32 + 24] ^= 1
    assert take(ring, 10) == [b"good", b"fine"]
    for _ in range(2):
        with pytest.raises(PeerError, match="position 64 fails its checksum"):
            ring.read_batch(10)
    assert ring.resync() == 64 and ring.read_batch(10) is None
    raw.close()


@pytest.mark.parametrize(
    ("at", "value", "complaint"),
    [
        (0, 1 << 20, "claims 1048576 bytes"),
        (0, CAPACITY - 24, "claims 232 bytes"),
        (0, 0xFFFF_FFFF, "padding at position 0 is not whole"),
        (8, 32, "position 0 carries sequence 32"),
        (16, 2, "fails its checksum"),
    ],
)
def test_what_is_wrong_is_said(ring: Ring, at: int, value: int, complaint: str) -> None:
    ring.write_nowait(b"one", 1)
    raw = mapped(ring)
    raw.data[DATA + at : DATA + at + 4] = value.to_bytes(4, "little")
    with pytest.raises(PeerError, match=complaint):
        ring.read_batch(1)
    raw.close()


def test_damaged_padding_is_noticed(ring: Ring) -> None:
    for _ in range(2):
        ring.write_nowait(bytes(80), 1)
    drain(ring)
    ring.write_nowait(bytes(80), 1)
    assert ring.used() > 104, "the record went to the next lap, behind padding"
    raw = mapped(ring)
    raw.data[DATA + 208 + 4] ^= 1
    with pytest.raises(PeerError, match="padding at position 208 is not whole"):
        ring.read_batch(1)
    raw.close()


class RingMachine(RuleBasedStateMachine):
    """A ring and a deque, under reads, writes, wraps, full rings, new incarnations of either kind and killed
    writes."""

    def __init__(self) -> None:
        super().__init__()
        self.producer = Ring.create(CAPACITY)
        self.consumer = again(self.producer)
        self.incarnation = 1
        self.expected: deque[tuple[int, bytes]] = deque()

    @rule(payload=st.binary(max_size=CAPACITY // 2 - 24))
    def write(self, payload: bytes) -> None:
        room = CAPACITY - self.producer.used()
        fits = self.producer.write_nowait(payload, self.incarnation)
        if fits:
            self.expected.append((self.incarnation, payload))
        assert fits or room < 2 * (len(payload) + 32), "refused though it fits at any position"

    @rule(limit=st.integers(1, 5))
    def read(self, limit: int) -> None:
        taken = records(self.consumer, limit)
        assert taken == [self.expected.popleft() for _ in range(min(limit, len(self.expected)))]

    @rule(kind=st.sampled_from(KINDS))
    def new_producer(self, kind: str) -> None:
        self.incarnation += 1
        self.producer.close()
        with of_kind(kind):
            self.producer = again(self.consumer)

    @rule(kind=st.sampled_from(KINDS))
    def new_consumer(self, kind: str) -> None:
        self.consumer.close()
        with of_kind(kind):
            self.consumer = again(self.producer)

    @rule(payload=st.binary(max_size=CAPACITY // 2 - 24), share=st.floats(0, 1), kind=st.sampled_from(KINDS))
    def producer_killed_inside_a_write(self, payload: bytes, share: float, kind: str) -> None:
        """Everything but the tail's store happened, up to some byte."""
        raw = mapped(self.producer)
        before = bytes(raw.data)
        self.producer.write_nowait(payload, self.incarnation)
        after = bytes(raw.data)
        changed = [i for i in range(DATA, len(after)) if before[i] != after[i]]
        for i in changed[int(share * len(changed)) :]:
            raw.data[i] = before[i]
        raw.words[TAIL_WORD] = int.from_bytes(before[TAIL_WORD * 8 : TAIL_WORD * 8 + 8], "little")
        raw.close()
        self.new_producer(kind)

    @precondition(lambda self: self.expected)
    @rule()
    def give_up(self) -> None:
        assert self.consumer.resync() > 0
        self.expected.clear()

    @invariant()
    def depth_agrees(self) -> None:
        assert (self.consumer.used() == 0) == (not self.expected)

    def teardown(self) -> None:
        self.producer.close()
        self.consumer.close()


@pytest.mark.parametrize("kind", ["compiled"], indirect=True, scope="module")
def test_a_ring_is_a_deque() -> None:
    run_state_machine_as_test(
        RingMachine, settings=settings(max_examples=60, stateful_step_count=60, deadline=None)
    )


def mutate(seed: int, flips: int) -> tuple[int, int]:
    """One ring of random records with `flips` random bytes changed between head and tail.

    Returns (records accepted, records written); asserts that what was accepted is what was written.
    """
    draw = random.Random(seed)
    ring = Ring.create(1024)
    while draw.random() < 0.9:  # stand anywhere before the test begins
        ring.write_nowait(draw.randbytes(draw.randrange(200)), 1)
        ring.read_batch(1)
    raw = mapped(ring)
    sent = []
    while ring.write_nowait(payload := draw.randbytes(draw.randrange(200)), 3):
        sent.append((3, payload))
    for _ in range(flips):
        raw.data[DATA + (raw.words[16] + draw.randrange(ring.used())) % 1024] ^= draw.randrange(1, 256)
    accepted: list[tuple[int, bytes]] = []
    try:
        while batch := ring.read_batch(1):
            accepted += [(batch[0], payload) for payload in batch[1]]
    except PeerError:
        assert ring.resync() > 0
    assert accepted == sent[: len(accepted)]
    assert ring.write_nowait(b"after", 4)
    assert drain(ring) == [b"after"]
    raw.close()
    ring.close()
    return len(accepted), len(sent)


def test_mutated_bytes_are_never_accepted() -> None:
    """TROUPE_RING_MUTATIONS=1000000 is the long form."""
    rounds = int(os.environ.get("TROUPE_RING_MUTATIONS", "1500"))
    outcomes = [mutate(seed, flips=1 + seed % 3) for seed in range(rounds)]
    assert sum(accepted < written for accepted, written in outcomes) > rounds * 0.8, "flips were noticed"


@given(st.binary(min_size=1, max_size=64), st.data())
@settings(deadline=None, max_examples=50)
def test_any_single_flipped_bit_of_a_record_is_noticed_or_harmless(
    payload: bytes, data: st.DataObject
) -> None:
    ring = Ring.create(CAPACITY)
    ring.write_nowait(payload, 9)
    raw = mapped(ring)
    bit = data.draw(st.integers(0, ring.used() * 8 - 1))
    raw.data[DATA + bit // 8] ^= 1 << bit % 8
    try:
        batch = ring.read_batch(1)
    except PeerError:
        pass
    else:
        assert batch == (9, [payload])
        assert bit // 8 in range(20, 24) or bit // 8 >= 24 + len(payload), "only padding may change unseen"
    raw.close()
    ring.close()


@pytest.mark.parametrize("campaign", ["producers", "consumers"])
def test_processes_killed_in_the_stream_lose_and_invent_nothing(campaign: str, kind: str) -> None:
    """TROUPE_RING_KILLS=100000 is the long form."""
    kills = os.environ.get("TROUPE_RING_KILLS", "100")
    command = [sys.executable, "-m", "tests.runtime.ring_campaign", campaign, kills]
    env = os.environ | environment(kind)
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, env=env)
    assert done.returncode == 0, done.stderr
    assert f"{kills} kills" in done.stdout


def test_killed_behind_any_instruction_of_a_write_leaves_nothing_or_a_whole_record(kind: str) -> None:
    command = [sys.executable, "-m", "tests.runtime.ring_steps"]
    env = os.environ | environment(kind)
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, env=env)
    if done.returncode == 77:
        pytest.skip("this machine lets nobody trace")
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[0]) > 300


def test_a_long_stream_between_processes_arrives_in_order_and_whole(kind: str) -> None:
    """`python -m tests.runtime.ring_campaign messages 10000000` is the long form."""
    command = [sys.executable, "-m", "tests.runtime.ring_campaign", "messages", "20000"]
    env = os.environ | environment(kind)
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, env=env)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[0]) >= 20000
