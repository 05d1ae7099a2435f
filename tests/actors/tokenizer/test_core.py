"""The state machine over a real ledger: the life of requests, mail that is late or lost, and death."""

from __future__ import annotations

import errno
import itertools
from collections.abc import Iterable, Iterator
from typing import Any

import msgspec
import numpy as np
import pytest
import structlog
import structlog.testing
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models

from actors import aborts
from actors.tokenizer.codec import Codec
from actors.tokenizer.core import Core, Outgoing
from actors.tokenizer.recovery import SLICE
from protocols.errors import ErrorBody
from protocols.messages import Abort, Deltas, Generate, Refused, StopHere, Submit, TextRow, TokenRow
from protocols.plan import Logprobs
from protocols.request import Finish, OutputOptions, TextPrompt, TokenPrompt, Usage
from protocols.stored import decode_stored, pack_logprobs
from runtime.ledger import Ledger
from tests.actors.tokenizer.parts import (
    Client,
    chat,
    codec_of,
    config_of,
    core_of,
    generate,
    new_ledger,
    rendered,
)


@pytest.fixture
def ledger() -> Iterator[Ledger]:
    ledger = new_ledger()
    yield ledger
    ledger.close()


def take_up(core: Core, message: Generate) -> list[Outgoing]:
    return core.admit(message, core.prepare(message, rendered(message.prompt)))


def submits(out: Iterable[Outgoing]) -> list[Submit]:
    return [message for _, message in out if isinstance(message, Submit)]


def rows(out: Iterable[Outgoing]) -> list[TextRow]:
    return [row for _, message in out if isinstance(message, Deltas) for row in message.rows]


def refused(out: Iterable[Outgoing]) -> list[ErrorBody]:
    return [message.error for _, message in out if isinstance(message, Refused)]


def ids_of(text: str) -> tuple[int, ...]:
    return tuple(codec_of("byte_level").encode(text, add_special=False).tolist())


def first_id(text: str) -> int:
    return ids_of(text)[0]


def test_a_request_goes_down_complete(ledger: Ledger) -> None:
    core = core_of(ledger)
    message = generate(ledger, "Hello", n=2, origin=1, max_tokens=9)
    ((to, first), (_, second)) = take_up(core, message)
    assert to == "scheduler.0"
    assert isinstance(first, Submit) and isinstance(second, Submit)
    assert (first.rid, first.choice, second.rid, second.choice) == (message.rids[0], 0, message.rids[1], 1)
    assert first.tokens == second.tokens == np.asarray(ids_of("Hello"), "<i4").tobytes()
    assert first.sampling == second.sampling
    assert (first.origin, first.trace, first.sampling.max_tokens, first.sampling.seed) == (0, "t", 9, 1)
    assert core.open == 2


def test_the_ledger_knows_the_request_before_it_goes_down(ledger: Ledger) -> None:
    core = core_of(ledger)
    message = generate(ledger, chat("Hello"), output=OutputOptions(stop=("x",), echo=True))
    (submit,) = submits(take_up(core, message))
    stored = decode_stored(ledger.request(message.rids[0]))
    assert stored.submit == submit
    assert stored.generate.output == OutputOptions(stop=("x",))
    assert stored.generate.prompt == TokenPrompt(b"")


def test_replicas_are_reached_through_the_balancer(ledger: Ledger) -> None:
    core = core_of(ledger, dp=2)
    message = generate(ledger)
    assert [to for to, _ in take_up(core, message)] == ["balancer"]
    assert core.abort(Abort(message.rids[0])) == [("balancer", Abort(message.rids[0]))]


def test_text_goes_to_the_frontend_that_asked(ledger: Ledger) -> None:
    core = core_of(ledger)
    one, two, three = (generate(ledger, origin=origin) for origin in (0, 1, 0))
    for message in (one, two, three):
        take_up(core, message)
    a, b = ids_of("a")[0], ids_of("b")[0]
    out = core.take(
        (TokenRow(one.rids[0], 0, (a,)), TokenRow(two.rids[0], 0, (b,)), TokenRow(three.rids[0], 0, (b,)))
    )
    found = {to: [row.text for row in rows([(to, m)])] for to, m in out}
    assert found == {"frontend.0": ["a", "b"], "frontend.1": ["b"]}


def test_an_echo_is_sent_at_once(ledger: Ledger) -> None:
    core = core_of(ledger)
    out = take_up(core, generate(ledger, "Hello", output=OutputOptions(echo=True), origin=2))
    assert [to for to, _ in out] == ["scheduler.0", "frontend.2"]
    assert rows(out)[0].text == "Hello"


def test_a_stop_string_ends_the_choice_below_and_above(ledger: Ledger) -> None:
    core = core_of(ledger)
    message = generate(ledger, output=OutputOptions(stop=("b",)))
    take_up(core, message)
    rid = message.rids[0]
    out = core.take((TokenRow(rid, 0, ids_of("a") + ids_of("b") + ids_of("c")),))
    assert out[0] == ("scheduler.0", StopHere(rid, 2))
    assert [(row.text, row.finish, row.stop) for row in rows(out)] == [("a", Finish.STOP, "b")]
    assert core.open == 0
    assert core.take((TokenRow(rid, 3, ids_of("d")),)) == []


def test_the_scheduler_is_not_told_of_an_end_that_it_made(ledger: Ledger) -> None:
    core = core_of(ledger)
    message = generate(ledger, output=OutputOptions(stop=("b",)))
    take_up(core, message)
    out = core.take((TokenRow(message.rids[0], 0, ids_of("b"), Finish.LENGTH),))
    assert [to for to, _ in out] == ["frontend.0"]
    assert rows(out)[0].finish is Finish.STOP


def test_unknown_requests_are_ignored(ledger: Ledger) -> None:
    core = core_of(ledger)
    assert core.take((TokenRow(12345, 0, (1,)),)) == []
    assert core.abort(Abort(12345)) == [("scheduler.0", Abort(12345))]


def test_an_abort_ends_everything(ledger: Ledger) -> None:
    core = core_of(ledger)
    message = generate(ledger)
    take_up(core, message)
    rid = message.rids[0]
    assert core.abort(Abort(rid)) == [("scheduler.0", Abort(rid))]
    assert core.open == 0
    assert core.take((TokenRow(rid, 0, (5,)),)) == []


def test_an_abort_that_overtook_its_request_is_remembered(ledger: Ledger) -> None:
    core = core_of(ledger)
    message = generate(ledger, n=2)
    core.abort(Abort(message.rids[0]))
    out = take_up(core, message)
    assert [submit.rid for submit in submits(out)] == [message.rids[1]]
    assert [error.status for error in refused(out)] == [499]
    assert ledger.request(message.rids[0]) == b""


def test_aborts_are_not_remembered_without_bound(ledger: Ledger) -> None:
    core = core_of(ledger)
    message = generate(ledger)
    core.abort(Abort(message.rids[0]))
    for rid in range(aborts.REMEMBERED):
        core.abort(Abort(rid))
    assert submits(take_up(core, message))


def test_a_request_given_up_by_its_frontend_is_dropped(ledger: Ledger) -> None:
    core = core_of(ledger)
    message = generate(ledger)
    ledger.free(message.rids[0])
    assert take_up(core, message) == []
    assert core.open == 0


def test_a_request_sent_again_is_taken_up_once(ledger: Ledger) -> None:
    core = core_of(ledger)
    message = generate(ledger)
    assert take_up(core, message)
    assert take_up(core, message) == []
    core.take((TokenRow(message.rids[0], 0, ids_of("a"), Finish.LENGTH),))
    assert take_up(core, message) == []


def test_a_request_sent_again_for_which_memory_is_short_fails_only_where_it_is_new(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    core = core_of(ledger)
    message = generate(ledger, n=3)
    take_up(core, msgspec.structs.replace(message, rids=message.rids[:1]))

    def full(_ledger: Ledger, _rid: int, _record: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Ledger, "put_request", full)
    out = take_up(core, message)
    assert not submits(out) and not refused(out)
    assert [row.rid for row in rows(out)] == list(message.rids[1:])
    assert all(row.finish is Finish.ERROR and row.error and row.error.status == 503 for row in rows(out))
    assert core.open == 1
    other = generate(ledger, n=2)
    assert [error.status for error in refused(take_up(core, other))] == [503], "none runs: all are refused"


def test_what_is_logged_about_a_request_names_its_trace(ledger: Ledger) -> None:
    core = core_of(ledger)
    trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    message = msgspec.structs.replace(generate(ledger), trace=trace)
    take_up(core, message)
    with structlog.testing.capture_logs() as lines:
        core.take((TokenRow(message.rids[0], 5, (1,)),))
    (line,) = lines
    assert (line["event"], line["rid"]) == ("rows_lost", message.rids[0])
    assert line["trace_id"] == "4bf92f3577b34da6a3ce929d0e0e4736"


def test_a_bad_request_is_refused_and_forgotten(ledger: Ledger) -> None:
    core = core_of(ledger)
    message = generate(ledger, TextPrompt(""), n=2, origin=3)
    assert take_up(core, message) == [
        ("frontend.3", Refused(message.rids[0], ErrorBody(400, "the prompt is empty.", param="prompt")))
    ]
    assert core.open == 0
    assert ledger.request(message.rids[0]) == b""


def test_a_tokenizer_that_fails_refuses_with_500(ledger: Ledger) -> None:
    codec = Codec(Tokenizer(models.WordLevel({"a": 0}, unk_token="missing")), {})
    core = Core(config_of(codec), 0, codec, ledger, structlog.get_logger("test"))
    (error,) = refused(take_up(core, generate(ledger, "b")))
    assert (error.status, error.type) == (500, "server_error")
    assert submits(take_up(core, generate(ledger, "a")))


def test_a_request_too_large_for_the_ledger_or_the_ring(ledger: Ledger) -> None:
    small = new_ledger(request_bytes=64)
    try:
        (error,) = refused(take_up(core_of(small), generate(small, "Hello")))
        assert error.status == 413
    finally:
        small.close()
    (error,) = refused(
        take_up(core_of(ledger, ring_bytes=2 * 4096 + 2 * 100), generate(ledger, "Hello" * 20))
    )
    assert error.status == 413


def test_tokens_that_never_came_are_read_from_the_ledger(ledger: Ledger) -> None:
    core = core_of(ledger)
    message = generate(ledger, output=OutputOptions(token_ids=True), logprobs=0)
    take_up(core, message)
    rid = message.rids[0]
    a, b, c = ids_of("a")[0], ids_of("b")[0], ids_of("c")[0]
    found = [Logprobs(-1.0), Logprobs(-2.0), Logprobs(-3.0)]
    ledger.commit(rid, (a, b, c), pack_logprobs(found))
    core.take((TokenRow(rid, 0, (a,), logprobs=(found[0],)),))
    (row,) = rows(core.take((TokenRow(rid, 2, (c,), logprobs=(found[2],)),)))
    assert (row.text, row.offset, row.token_ids, row.first_token) == ("bc", 1, (b, c), 1)
    assert [entry.token[2] for entry in row.logprobs] == [-2.0, -3.0]


def test_tokens_that_nobody_has_end_the_choice_with_an_error(ledger: Ledger) -> None:
    core = core_of(ledger)
    message = generate(ledger)
    take_up(core, message)
    (row,) = rows(core.take((TokenRow(message.rids[0], 2, (5,)),)))
    assert row.finish is Finish.ERROR and row.error is not None
    assert row.error.status == 500


def test_a_gap_in_a_request_that_is_gone_ends_it(ledger: Ledger) -> None:
    core = core_of(ledger)
    message = generate(ledger)
    take_up(core, message)
    ledger.free(message.rids[0])
    core.take((TokenRow(message.rids[0], 2, (5,)),))
    assert core.open == 0


# --- after a death


def test_an_unanswered_request_is_submitted_again(ledger: Ledger) -> None:
    message = generate(ledger)
    sent = take_up(core_of(ledger), message)
    core = core_of(ledger)
    assert list(core.recover()) == sent
    assert core.open == 1


def test_an_echo_that_was_not_sent_is_sent(ledger: Ledger) -> None:
    message = generate(ledger, "Hello", output=OutputOptions(echo=True))
    sent = take_up(core_of(ledger), message)
    assert list(core_of(ledger).recover()) == sent
    ledger.commit(message.rids[0], ids_of("a"))
    assert [row.text for row in rows(core_of(ledger).recover())] == ["Hello", "a"]
    ledger.set_delivered([(message.rids[0], 1)], 0)
    assert rows(core_of(ledger).recover()) == []


def test_requests_of_other_tokenizers_and_unwritten_ones_are_left_alone(ledger: Ledger) -> None:
    take_up(core_of(ledger, index=1), generate(ledger))
    generate(ledger)
    core = core_of(ledger)
    assert list(core.recover()) == []
    assert core.open == 0


def test_choices_that_were_not_written_any_more_are_made_up_for(ledger: Ledger) -> None:
    message = generate(ledger, n=3)
    whole = submits(take_up(core_of(ledger), message))
    other = new_ledger()
    try:
        again = msgspec.structs.replace(message, rids=tuple(other.claim(0) or 0 for _ in range(3)))
        assert again.rids == message.rids
        other.put_request(message.rids[1], ledger.request(message.rids[1]))
        core = core_of(other)
        assert sorted(submits(core.recover()), key=lambda submit: submit.rid) == whole
        assert core.open == 3
        assert take_up(core, again) == []
    finally:
        other.close()


def test_a_torn_record_is_left_alone(ledger: Ledger) -> None:
    message = generate(ledger)
    ledger.put_request(message.rids[0], b"\x93garbage")
    core = core_of(ledger)
    assert list(core.recover()) == []
    assert core.open == 0


def test_a_long_output_is_replayed_in_rows_of_bounded_size() -> None:
    ledger = new_ledger(tokens=4 * SLICE)
    try:
        message = generate(ledger)
        take_up(core_of(ledger), message)
        a = ids_of("a")[0]
        ledger.commit(message.rids[0], (a,) * (3 * SLICE))
        ledger.set_delivered([(message.rids[0], SLICE + 7)], 0)
        found = rows(core_of(ledger).recover())
        assert [row.offset for row in found] == [SLICE + 7, 2 * SLICE]
        assert found[-1].tokens == 3 * SLICE
    finally:
        ledger.close()


@pytest.mark.parametrize("delivered", [0, 1, 2, 3])
def test_what_ended_a_choice_is_told_again(delivered: int, ledger: Ledger) -> None:
    core = core_of(ledger)
    eos = codec_of("byte_level").eos
    assert eos is not None
    endings: dict[str, tuple[dict[str, Any], tuple[int, ...], Finish]] = {
        "stop token": ({}, (*ids_of("a"), *ids_of("b"), eos), Finish.STOP),
        "stop word": ({"stop_token_ids": ids_of("c")}, tuple(map(first_id, "abc")), Finish.STOP),
        "length": ({}, ids_of("a") * 3, Finish.LENGTH),
        "stop string": (
            {"output": OutputOptions(stop=("c",))},
            (*ids_of("a"), *ids_of("b"), *ids_of("c")),
            Finish.STOP,
        ),
        "error": ({}, ids_of("a") * 3, Finish.ERROR),
    }
    for name, (options, tokens, finish) in endings.items():
        message = generate(ledger, **options)
        take_up(core, message)
        rid = message.rids[0]
        ledger.commit(rid, tokens, finish=finish)
        client = Client()
        replayed = [row for row in rows(core_of(ledger).recover()) if row.rid == rid]
        for row in replayed:
            client.take(row)
        ledger.set_delivered([(rid, delivered)], 0)
        again = [row for row in rows(core_of(ledger).recover()) if row.rid == rid]
        assert again[-1].finish is finish, name
        assert client.finish is finish, name
        assert again[-1].usage == Usage(len(ids_of("Hello")), 3, 0), name
        assert (client.error is not None) == (finish is Finish.ERROR)
        assert client.text == {"length": "aaa", "error": "aaa"}.get(name, "ab")
        ledger.free(rid)


class Company:
    """A tokenizer that may die at any moment, between a scheduler and a client, over one ledger.

    Mail to the tokenizer is taken from its ring before it is handled, as in a real company.
    """

    def __init__(
        self, kind: str, message: Generate, ledger: Ledger, tokens: list[int], logprobs: bool
    ) -> None:
        self.kind, self.message, self.ledger = kind, message, ledger
        self.rid = message.rids[0]
        self.tokens = tokens
        self.logprobs = [Logprobs(-float(i)) for i in range(len(tokens))] if logprobs else []
        self.client = Client()
        self.committed = 0
        self.stopped = -1
        self.core = core_of(ledger, kind)
        self.deliver(take_up(self.core, message))

    def deliver(self, out: Iterable[Outgoing]) -> None:
        for _, message in out:
            match message:
                case Deltas(rows):
                    for row in rows:
                        self.client.take(row)
                        self.ledger.set_delivered([(row.rid, row.tokens)], 0)
                case StopHere(_, length):
                    self.stopped = length
                case _:
                    pass

    def commit(self, count: int) -> TokenRow:
        """The scheduler's step: `count` more tokens."""
        start, end = self.committed, min(self.committed + count, len(self.tokens))
        finish = Finish.LENGTH if end == len(self.tokens) else Finish.NONE
        tokens, logprobs = tuple(self.tokens[start:end]), tuple(self.logprobs[start:end])
        self.ledger.commit(self.rid, tokens, pack_logprobs(logprobs), finish)
        self.committed = end
        return TokenRow(self.rid, start, tokens, finish, 0, logprobs)

    def die(self, out: list[Outgoing], kept: int) -> None:
        """Send only the first `kept` messages, and come back."""
        self.deliver(out[:kept])
        self.core = core_of(self.ledger, self.kind)
        self.deliver(self.core.recover())


@pytest.mark.parametrize("kind", ["byte_level", "llama"])
@settings(max_examples=120, deadline=None)
@given(data=st.data())
def test_a_client_sees_the_same_whatever_dies_when(kind: str, data: st.DataObject) -> None:
    codec = codec_of(kind)
    size = codec.pieces.tokenizer.get_vocab_size()
    tokens = data.draw(st.lists(st.integers(0, size - 1), min_size=1, max_size=20))
    output = OutputOptions(
        stop=tuple(data.draw(st.lists(st.text("abe ", min_size=1, max_size=3), max_size=2))),
        include_stop=data.draw(st.booleans()),
        echo=data.draw(st.booleans()),
        token_ids=data.draw(st.booleans()),
    )
    logprobs = data.draw(st.booleans())
    least = data.draw(st.integers(0, 5))
    ledgers = new_ledger(), new_ledger()
    try:
        options: dict[str, Any] = {"min_tokens": least, "logprobs": 0 if logprobs else None, "output": output}
        calm, wild = (
            Company(kind, generate(ledger, "Hello", **options), ledger, tokens, logprobs)
            for ledger in ledgers
        )
        calm.deliver(calm.core.take((calm.commit(len(tokens)),)))
        unread: list[TokenRow] = []
        for step in itertools.count():
            if wild.client.finish or step > 200:
                break
            if wild.committed < len(tokens):
                unread.append(wild.commit(data.draw(st.integers(1, 4))))
            match (
                data.draw(st.sampled_from(["take", "lose", "repeat", "die", "wait"]))
                if step < 100
                else "take"
            ):
                case "take" if unread:
                    batch, unread = tuple(unread), []
                    wild.deliver(wild.core.take(batch))
                case "lose" if len(unread) > 1:
                    del unread[0]
                case "repeat" if unread:
                    unread.append(unread[-1])
                case "die":
                    batch, unread = tuple(unread), []
                    out = wild.core.take(batch)
                    wild.die(out, data.draw(st.integers(0, len(out))))
                case _:
                    pass
        for field in ("text", "tokens", "ids", "logprobs", "finish", "stop"):
            assert getattr(wild.client, field) == getattr(calm.client, field), field
        assert wild.client.usage[-1] == calm.client.usage[-1]
    finally:
        for ledger in ledgers:
            ledger.close()
