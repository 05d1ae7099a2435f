"""One conformance suite for mail: over shared memory as in production, and over the in-memory twin."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import structlog.testing
import trio
import trio.testing

from protocols.board import Column
from protocols.messages import Abort, Plan, SchedulerMail, StepDone, StopHere
from protocols.wire import Decoder, encode_batch
from runtime.board import Board
from runtime.channel import RELOOK, TOGETHER, Inbox, Outbox
from runtime.doorbell import Doorbell
from runtime.memory import MemoryDoorbell, MemoryRing
from runtime.ring import Ring
from tests.runtime.kinds import KINDS, of_kind

CONTROL_BYTES, DATA_BYTES = 4096, 16384


class Office:
    """One receiver, "scheduler", with two senders, "a" and "b"."""

    def __init__(self, make_ring: Callable[[int], Any], make_bell: Callable[[Any], Any]) -> None:
        self.board = Board.create(1)
        self.bell = make_bell(self.board.word(0, Column.AWAKE))
        self.lanes = {name: (make_ring(CONTROL_BYTES), make_ring(DATA_BYTES)) for name in "ab"}
        self.inbox = self.new_inbox()
        self.outboxes = {
            name: Outbox(4 + i, {"scheduler": (*self.lanes[name], self.bell)}) for i, name in enumerate("ab")
        }

    def new_inbox(self) -> Inbox[SchedulerMail]:
        return Inbox(self.bell, self.lanes, Decoder(SchedulerMail))

    def send(self, name: str, *messages: Any) -> None:
        self.outboxes[name].send_nowait("scheduler", *messages)

    def messages(self, limit: int = 256) -> list[Any]:
        return [mail.message for mail in self.inbox.receive_nowait(limit)]

    def close(self) -> None:
        for part in (self.bell, *(ring for lanes in self.lanes.values() for ring in lanes)):
            if isinstance(part, Ring | Doorbell):
                part.close()
        self.board.close()


@pytest.fixture(params=[*KINDS, "memory"])
def office(request: pytest.FixtureRequest) -> Iterator[Office]:
    if request.param == "memory":
        yield Office(MemoryRing, lambda _: MemoryDoorbell())
        return
    with of_kind(request.param):
        made = Office(Ring.create, Doorbell.create)
        yield made
        made.close()


def step(number: int, size: int = 0) -> StepDone:
    return StepDone(1, number, bytes(size), b"", 10)


def fill(office: Office, name: str, size: int = 1000) -> int:
    """Send until the data ring is full; returns how many were sent."""
    for number in range(1000):
        try:
            office.send(name, step(number, size))
        except trio.WouldBlock:
            return number
    raise AssertionError("the ring never filled")


def test_mail_says_what_who_and_which_incarnation(office: Office) -> None:
    office.send("b", step(1))
    (mail,) = office.inbox.receive_nowait()
    assert (mail.source, mail.message, mail.incarnation) == ("b", step(1), 5)


def test_empty_would_block(office: Office) -> None:
    with pytest.raises(trio.WouldBlock):
        office.inbox.receive_nowait()
    assert office.inbox.depth() == 0


def test_order_is_kept_within_a_sender(office: Office) -> None:
    for number in range(20):
        office.send("a", step(number))
    assert office.messages() == [step(number) for number in range(20)]


def test_control_mail_overtakes_data(office: Office) -> None:
    office.send("a", step(1), Abort(7), step(2), StopHere(8, 3))
    office.send("b", step(3), Abort(9))
    received = office.messages()
    assert received[:3] == [Abort(7), StopHere(8, 3), Abort(9)]
    assert received[3:] == [step(1), step(2), step(3)]


def test_a_flood_of_data_leaves_room_for_control_mail(office: Office) -> None:
    fill(office, "a")
    office.send("a", Abort(1))
    assert office.messages(limit=1) == [Abort(1)]


def test_the_limit_counts_records_and_the_senders_take_turns(office: Office) -> None:
    for number in range(4):
        office.send("a", step(number))
        office.send("b", step(10 + number))
    sources = [tuple(mail.source for mail in office.inbox.receive_nowait(limit=2)) for _ in range(4)]
    assert sources == [("a", "a"), ("b", "b"), ("a", "a"), ("b", "b")]


def test_what_was_sent_together_arrives_together(office: Office) -> None:
    burst = [step(number) for number in range(TOGETHER)]
    office.send("a", *burst)
    assert office.messages(limit=1) == burst


def test_a_burst_longer_than_a_record_arrives_whole_and_in_order(office: Office) -> None:
    burst = [step(number) for number in range(2 * TOGETHER + 5)]
    office.send("a", *burst)
    assert office.messages() == burst


def test_a_burst_too_big_for_one_record_goes_one_by_one(office: Office) -> None:
    burst = [step(number, 2000) for number in range(6)]
    assert len(encode_batch(burst)) > office.lanes["a"][1].limit
    office.send("a", *burst)
    assert office.messages() == burst


def test_full_would_block_and_leaves_nothing_of_the_unsent(office: Office) -> None:
    sent = fill(office, "a")
    with pytest.raises(trio.WouldBlock):
        office.send("a", step(999, 1000))
    assert office.messages() == [step(number, 1000) for number in range(sent)]
    office.send("a", step(999, 1000))
    assert office.messages() == [step(999, 1000)]


def test_of_a_burst_that_does_not_fit_the_first_ones_are_sent(office: Office) -> None:
    burst = [step(number, 3000) for number in range(8)]
    with pytest.raises(trio.WouldBlock):
        office.send("a", *burst)
    received = office.messages()
    assert 0 < len(received) < 8 and received == burst[: len(received)]


def test_a_message_that_can_never_fit_is_a_value_error(office: Office) -> None:
    with pytest.raises(ValueError, match="exceeds this ring's limit"):
        office.send("a", step(1, DATA_BYTES))
    with pytest.raises(ValueError, match="exceeds this ring's limit"):
        office.send("a", step(2), step(3, DATA_BYTES))
    assert office.messages() == [step(2)]


def test_an_unknown_destination_is_a_key_error(office: Office) -> None:
    with pytest.raises(KeyError):
        office.outboxes["a"].send_nowait("nobody", step(1))
    assert office.outboxes["a"].destinations == ["scheduler"]


def test_sending_nothing_is_nothing(office: Office) -> None:
    office.outboxes["a"].send_nowait("scheduler")
    with pytest.raises(trio.WouldBlock):
        office.inbox.receive_nowait()


def test_a_record_of_an_incarnation_that_was_replaced_is_dropped(office: Office) -> None:
    """It cannot come while the supervisor fences; a reader does not rely on that."""
    old, lanes = office.outboxes["a"], office.lanes["a"]
    old.send_nowait("scheduler", Abort(1))
    lanes[0].write_nowait(encode_batch((Abort(2),)), 5)
    lanes[0].write_nowait(encode_batch((Abort(3),)), 4)
    with structlog.testing.capture_logs() as logs:
        assert [office.messages(), office.messages()] == [[Abort(1)], [Abort(2)]]
        with pytest.raises(trio.WouldBlock):
            office.messages()
        assert (office.inbox.dropped, len(logs)) == (1, 1)
        lanes[0].write_nowait(encode_batch((Abort(4),)), 4)
        with pytest.raises(trio.WouldBlock):
            office.messages()
    assert office.inbox.dropped == 2
    lanes[0].write_nowait(encode_batch((Abort(5),)), 6)
    assert office.messages() == [Abort(5)]


def test_what_is_not_accepted_is_counted_and_dropped(
    office: Office, capsys: pytest.CaptureFixture[str]
) -> None:
    lane = office.lanes["a"][1]
    office.send("a", step(1))
    for junk in (b"junk", b"", b"\xc1", encode_batch([Plan(1, 2)]), b"\x91" * 100_0):
        assert lane.write_nowait(junk, 4)
    office.send("a", step(2))
    with structlog.testing.capture_logs() as logs:
        assert office.messages() == [step(1), step(2)]
    assert office.inbox.dropped == 5
    assert [(log["event"], log["source"]) for log in logs] == [("mail dropped", "a")] * 5


def test_only_junk_would_block(office: Office) -> None:
    office.lanes["b"][0].write_nowait(b"junk", 4)
    with structlog.testing.capture_logs(), pytest.raises(trio.WouldBlock):
        office.inbox.receive_nowait()
    assert office.inbox.dropped == 1


def test_unread_mail_survives_the_receiver(office: Office) -> None:
    office.send("a", step(1))
    office.inbox = office.new_inbox()
    assert office.messages() == [step(1)]


def test_messages_are_counted(office: Office) -> None:
    office.send("a", step(1), Abort(2), step(3))
    office.send("a", step(4))
    assert office.outboxes["a"].sent == 4
    assert office.inbox.depth() > 0
    office.inbox.receive_nowait(limit=2)
    assert office.inbox.received == 2
    assert office.inbox.depth() > 0
    office.inbox.receive_nowait()
    assert office.inbox.received == 4
    assert office.inbox.depth() == 0


async def test_a_parked_receiver_is_woken(office: Office) -> None:
    received: list[Any] = []

    async def receiver() -> None:
        received.extend(await office.inbox.receive())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(receiver)
        await trio.testing.wait_all_tasks_blocked()
        with trio.fail_after(RELOOK / 2):
            office.send("a", step(1))
            while not received:
                await trio.lowlevel.checkpoint()
    assert [mail.message for mail in received] == [step(1)]


async def test_mail_without_a_bell_is_found_at_the_next_look(office: Office, autojump_clock: Any) -> None:
    start = trio.current_time()
    async with trio.open_nursery() as nursery:

        @nursery.start_soon
        async def receiver() -> None:
            assert (await office.inbox.receive())[0].message == step(1)

        await trio.testing.wait_all_tasks_blocked()
        office.lanes["a"][1].write_nowait(encode_batch([step(1)]), 4)
    assert trio.current_time() - start <= RELOOK


async def test_a_bell_rung_for_nothing_wakes_nobody_for_long(office: Office) -> None:
    with trio.move_on_after(0.01) as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(office.inbox.receive)
            await trio.testing.wait_all_tasks_blocked()
            office.bell.ring()
    assert scope.cancelled_caught


async def test_a_cancelled_receive_takes_nothing(office: Office) -> None:
    office.send("a", step(1))
    with trio.CancelScope() as scope:
        scope.cancel()
        await office.inbox.receive()
    assert scope.cancelled_caught
    assert office.messages() == [step(1)]


async def test_receive_is_a_checkpoint_even_when_mail_waits(office: Office) -> None:
    office.send("a", step(1))
    with trio.testing.assert_checkpoints():
        await office.inbox.receive()


async def test_send_is_a_checkpoint_and_cancelled_sends_nothing(office: Office) -> None:
    with trio.testing.assert_checkpoints():
        await office.outboxes["a"].send("scheduler", step(1))
    with trio.CancelScope() as scope:
        scope.cancel()
        await office.outboxes["a"].send("scheduler", step(2))
    assert scope.cancelled_caught
    assert office.messages() == [step(1)]


async def test_a_sender_waits_for_room(office: Office, autojump_clock: Any) -> None:
    sent = fill(office, "a")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(office.outboxes["a"].send, "scheduler", step(sent, 1000))
        await trio.sleep(5)
        assert len(office.messages()) == sent
        assert [mail.message for mail in await office.inbox.receive()] == [step(sent, 1000)]


async def test_a_sender_that_gives_up_waiting_has_sent_nothing(office: Office, autojump_clock: Any) -> None:
    sent = fill(office, "a")
    with trio.move_on_after(1) as scope:
        await office.outboxes["a"].send("scheduler", step(sent, 1000))
    assert scope.cancelled_caught
    assert len(office.messages()) == sent


async def test_a_long_conversation_of_two_tasks_loses_nothing(office: Office) -> None:
    """Full rings and empty ones, parking and polling, many times over."""
    count = 3000

    async def sender(name: str) -> None:
        for number in range(count):
            await office.outboxes[name].send("scheduler", step(number, number % 3000))

    seen: dict[str, list[int]] = {"a": [], "b": []}
    async with trio.open_nursery() as nursery:
        nursery.start_soon(sender, "a")
        nursery.start_soon(sender, "b")
        while sum(map(len, seen.values())) < 2 * count:
            for mail in await office.inbox.receive(limit=7):
                seen[mail.source].append(mail.message.step)
    assert seen == {"a": list(range(count)), "b": list(range(count))}


def test_a_damaged_ring_costs_its_unread_mail_and_no_more() -> None:
    office = Office(Ring.create, Doorbell.create)
    office.send("a", step(1))
    office.send("a", step(2))
    office.send("b", step(3))
    other = Ring.attach(os.dup(office.lanes["a"][1].fd))
    other._data[256 + 30] ^= 1  # the first payload; damage needs a hand inside
    with structlog.testing.capture_logs() as logs:
        assert office.messages() == [step(3)]
    assert office.inbox.dropped == 1
    assert "fails its checksum" in logs[0]["error"] and logs[0]["skipped_bytes"] > 0
    office.send("a", step(4))
    assert office.messages() == [step(4)]
    other.close()
    office.close()
