"""Stop strings against a plain search of the whole text after every part."""

from __future__ import annotations

import time

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from actors.tokenizer.stops import StopMatcher, check_stops
from protocols.errors import UserError
from protocols.request import MAX_STOP_CHARS, MAX_STOPS


def reference(parts: list[str], stops: tuple[str, ...], *, include: bool) -> tuple[str, str | None, int]:
    """(whole shown text, the hit, parts read) by looking at everything again after each part."""
    text = ""
    for count, part in enumerate(parts, 1):
        text += part
        found = [(text.find(stop), -len(stop), stop) for stop in stops if stop in text]
        if found:
            start, _, hit = min(found)
            return text[: start + (len(hit) if include else 0)], hit, count
    return text, None, len(parts)


def could_match(text: str, stops: tuple[str, ...]) -> int:
    """Length of the longest suffix of `text` that is a proper prefix of a stop string."""
    return max((k for stop in stops for k in range(1, len(stop)) if text.endswith(stop[:k])), default=0)


LETTERS = st.text("ab\n", max_size=6)
STOPS = st.lists(st.text("ab\n", min_size=1, max_size=6), min_size=1, max_size=4).map(tuple)


@settings(max_examples=1000, deadline=None)
@given(parts=st.lists(LETTERS, max_size=12), stops=STOPS, include=st.booleans())
@example(parts=["aab"], stops=("aaab", "ab"), include=False)
@example(parts=["aa", "ab"], stops=("aab",), include=False)
@example(parts=["ab"], stops=("a", "ab", "b"), include=True)
@example(parts=["a", "b"], stops=("ab", "b"), include=False)
def test_matches_are_found_as_a_search_of_the_whole_text_finds_them(
    parts: list[str], stops: tuple[str, ...], include: bool
) -> None:
    shown, hit, count = reference(parts, stops, include=include)
    matcher = StopMatcher(stops, include=include)
    got = [matcher.feed(part) for part in parts[:count]]
    assert matcher.hit == hit
    assert "".join(got) + ("" if hit else matcher.flush()) == shown


@settings(max_examples=1000, deadline=None)
@given(parts=st.lists(LETTERS, max_size=12), stops=STOPS)
def test_exactly_what_could_become_a_match_is_held_back(parts: list[str], stops: tuple[str, ...]) -> None:
    matcher = StopMatcher(stops, include=False)
    shown = text = ""
    for part in parts:
        shown += matcher.feed(part)
        if matcher.hit:
            return
        text += part
        assert shown == text[: len(text) - could_match(text, stops)]
    assert shown + matcher.flush() == text


def test_a_stop_that_is_included_holds_nothing_back() -> None:
    matcher = StopMatcher(("</end>",), include=True)
    assert [matcher.feed(part) for part in ("a<", "/e", "nd", ">rest")] == ["a<", "/e", "nd", ">"]
    assert matcher.hit == "</end>"


def test_held_text_is_given_back_when_nothing_comes_of_it() -> None:
    matcher = StopMatcher(("STOP",), include=False)
    assert [matcher.feed(part) for part in ("x ST", "O", "NE ", "S")] == ["x ", "", "STONE ", ""]
    assert matcher.flush() == "S"


def test_the_earliest_start_wins_and_then_the_longest() -> None:
    matcher = StopMatcher(("cd", "abc", "abcd"), include=False)
    assert (matcher.feed("xabcdy"), matcher.hit) == ("x", "abcd")


@pytest.mark.parametrize(
    "stops", [("",), ("ok", ""), ("x" * (MAX_STOP_CHARS + 1),), tuple(map(str, range(MAX_STOPS + 1)))]
)
def test_bad_stops_are_refused(stops: tuple[str, ...]) -> None:
    with pytest.raises(UserError) as caught:
        check_stops(stops)
    assert caught.value.body.status == 400
    assert caught.value.body.param == "stop"


def test_the_greatest_stops_are_accepted() -> None:
    check_stops(tuple("x" * MAX_STOP_CHARS for _ in range(MAX_STOPS)))


def test_cost_follows_the_new_text_not_the_text_so_far() -> None:
    """The worst case for a plain search: long stops that almost match, all the time."""
    stops = tuple("a" * (MAX_STOP_CHARS - i - 1) + "b" for i in range(4))

    def feed_seconds(matcher: StopMatcher, count: int) -> float:
        start = time.process_time()
        for _ in range(count):
            matcher.feed("a")
        return time.process_time() - start

    matcher = StopMatcher(stops, include=False)
    early = min(feed_seconds(matcher, 500) for _ in range(3))
    for _ in range(20_000):
        matcher.feed("a")
    late = min(feed_seconds(matcher, 500) for _ in range(3))
    assert late < early * 5
