"""The token bucket that frontends share: refill, debt, several views, and a frontend that dies."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.frontend.bucket import Bucket, wait_for_room
from protocols.keys import Key, Keyring, digest_of
from runtime.vault import Use, Vault

SECOND = 10**9
RATE = 600
"""Tokens a minute: ten a second."""


@pytest.fixture
def vault() -> Iterator[Vault]:
    with contextlib.closing(Vault.create(2)) as made:
        yield made


def test_debt_grows_by_what_is_spent_and_falls_with_time(vault: Vault) -> None:
    bucket, start = Bucket(vault.row(0, 0)), 1000 * SECOND
    assert bucket.debt(RATE, 0, start) == 0
    assert bucket.debt(RATE, 700, start) == 700
    assert bucket.debt(RATE, 700, start + 10 * SECOND) == 600
    assert bucket.debt(RATE, 750, start + 10 * SECOND) == 650
    assert bucket.debt(RATE, 750, start + 80 * SECOND) == 0


def test_the_wait_is_long_enough_and_no_longer() -> None:
    assert wait_for_room(0, RATE) == wait_for_room(RATE - 1, RATE) == 0
    assert wait_for_room(RATE, RATE) == 1
    assert wait_for_room(2 * RATE, RATE) == 61
    for debt in (600, 601, 605, 615, 1200):
        wait = wait_for_room(debt, RATE)
        assert debt - wait * RATE / 60 < RATE <= debt - (wait - 1) * RATE / 60 + 1


@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 50), st.integers(0, 20)), max_size=60))
def test_no_view_lets_a_key_have_more_than_its_rate(steps: list[tuple[int, int, int]]) -> None:
    """Requests of one token each, through either frontend: a bucket and its refill, where both look often."""
    with contextlib.closing(Vault.create(2)) as vault:
        rows = [vault.row(frontend, 0) for frontend in range(2)]
        buckets = [Bucket(row) for row in rows]
        now = start = 1000 * SECOND
        assert [bucket.debt(60, 0, start) for bucket in buckets] == [0, 0]
        spent = 0
        for frontend, tries, seconds in steps:
            now += seconds * SECOND
            for bucket in buckets:
                bucket.debt(60, spent, now)
            for _ in range(tries):
                if not wait_for_room(buckets[frontend].debt(60, spent, now), 60):
                    rows[frontend][Use.SPENT] += 1
                    spent += 1
            debts = [bucket.debt(60, spent, now) for bucket in buckets]
            assert debts[0] == pytest.approx(debts[1], abs=0.1)
        assert spent <= 61 + (now - start) // SECOND


def test_a_successor_knows_the_debt(vault: Vault) -> None:
    now = 1000 * SECOND
    row = vault.row(0, 0)
    row[Use.SPENT] = 900
    assert Bucket(row).debt(RATE, 900, now) == 0
    row[Use.SPENT] = 1900
    assert Bucket(row).debt(RATE, 1900, now) == 1000
    vault.vacate(0)
    assert Bucket(row).debt(RATE, 1900, now + 10 * SECOND) == 900


def test_keyrings_are_seen_whole_and_rows_stay(vault: Vault) -> None:
    def ring(*names: str) -> Keyring:
        return Keyring(True, tuple(Key(name, digest_of(name)) for name in names))

    reader = Vault.attach(os.dup(vault.fd), 2)
    with contextlib.closing(reader):
        assert reader.read()[1] == Keyring()
        vault.publish(ring("a", "b"))
        first, keyring, slots = reader.read()
        assert keyring == ring("a", "b")
        vault.publish(ring("c", "b"))
        generation, keyring, after = reader.read()
        assert generation == reader.generation == first + 1 and keyring == ring("c", "b")
        assert after["b"] == slots["b"] and after["c"] not in slots.values()
        vault.row(0, slots["b"])[Use.RUNNING] = 2
        vault.row(1, slots["b"])[Use.RUNNING] = 3
        assert vault.used("b") == {"running": 5, "connected": 0, "spent": 0}
        vault.vacate(1)
        assert vault.used("b")["running"] == 2
