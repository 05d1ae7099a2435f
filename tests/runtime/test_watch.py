"""Telling hung from busy, stopped watchers from stopped actors."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from runtime.watch import LONGEST_GAP, STARTING_HANG, Watch


def test_an_actor_that_ticks_is_well() -> None:
    watch = Watch(hang=1.0, busy=5.0)
    assert all(watch.look(i * 0.25, tick=i + 1, busy_since=0, ready=True) is None for i in range(100))


def test_an_actor_that_stands_still_hangs_soon_after_its_deadline() -> None:
    watch = Watch(hang=1.0, busy=5.0)
    seen = [watch.look(i * 0.25, tick=7, busy_since=0, ready=True) for i in range(10)]
    first = next(i for i, reason in enumerate(seen) if reason)
    assert 1.0 < first * 0.25 <= 2.0
    assert seen[first] == "made no turn of its loop for 1.2 s"


def test_one_that_has_not_begun_is_left_to_its_ready_deadline() -> None:
    watch = Watch(hang=1.0, busy=5.0)
    assert all(watch.look(i * 0.25, tick=0, busy_since=0, ready=False) is None for i in range(100))


def test_one_that_is_not_ready_has_more_time() -> None:
    watch = Watch(hang=1.0, busy=5.0)
    seen = [watch.look(i * 0.5, tick=7, busy_since=0, ready=False) for i in range(200)]
    first = next(i for i, reason in enumerate(seen) if reason)
    assert STARTING_HANG < first * 0.5 <= STARTING_HANG + 1.0


def test_a_busy_actor_may_stand_still() -> None:
    watch = Watch(hang=1.0, busy=5.0)
    seen = [watch.look(i * 0.25, tick=7, busy_since=11, ready=True) for i in range(40)]
    first = next(i for i, reason in enumerate(seen) if reason)
    assert 5.0 < first * 0.25 <= 6.0
    assert seen[first] == "was busy with one piece of work for 5.2 s"


def test_each_piece_of_work_has_its_own_time() -> None:
    watch = Watch(hang=1.0, busy=0.6)
    assert all(watch.look(i * 0.25, tick=7, busy_since=1 + i // 2, ready=True) is None for i in range(40))


def test_loading_may_take_as_long_as_it_may_take_to_be_ready() -> None:
    watch = Watch(hang=1.0, busy=5.0)
    assert all(watch.look(i * 0.25, tick=7, busy_since=11, ready=False) is None for i in range(400))


def test_after_work_the_silence_starts_anew() -> None:
    watch = Watch(hang=1.0, busy=50.0)
    for i in range(40):
        assert watch.look(i * 0.25, tick=7, busy_since=11, ready=True) is None
    assert watch.look(10.0, tick=7, busy_since=0, ready=True) is None
    assert watch.look(10.25, tick=8, busy_since=0, ready=True) is None


def test_a_watcher_that_was_stopped_blames_nobody() -> None:
    watch = Watch(hang=2 * LONGEST_GAP, busy=5.0)
    watch.look(0.0, tick=7, busy_since=0, ready=True)
    assert watch.look(3600.0, tick=7, busy_since=0, ready=True) is None
    assert watch.look(3600.25, tick=8, busy_since=0, ready=True) is None


@given(st.lists(st.tuples(st.floats(0.01, 0.9), st.booleans(), st.booleans()), max_size=60))
def test_only_silence_or_long_work_is_a_hang(steps: list[tuple[float, bool, bool]]) -> None:
    """Compared with a straightforward account of when it last moved and since when it has been busy."""
    watch = Watch(hang=1.0, busy=2.0)
    now, tick, busy = 0.0, 1, 0
    moved, began = 0.0, 0.0
    watch.look(now, tick=tick, busy_since=busy, ready=True)
    for gap, ticks, works in steps:
        now += gap
        if ticks or busy or works:
            moved = now
        tick += ticks
        if works and not busy:
            busy, began = int(now * 1000) + 1, now
        elif not works:
            busy = 0
        hangs = (busy and now - began > 2.0 + 1e-6) or (not busy and now - moved > 1.0 + 1e-6)
        fine = (busy and now - began < 2.0 - 1e-6) or (not busy and now - moved < 1.0 - 1e-6)
        reason = watch.look(now, tick=tick, busy_since=busy, ready=True)
        assert not (hangs and reason is None)
        assert not (fine and reason)
