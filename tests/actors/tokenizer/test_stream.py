"""One choice: rows of tokens in, rows of text out, whatever way the tokens are cut into rows."""

from __future__ import annotations

import itertools
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.tokenizer.stream import ECHO_SLICE, ChoiceStream
from protocols.errors import ErrorBody
from protocols.messages import Generate, Submit, TextRow, TokenRow
from protocols.plan import Logprobs
from protocols.request import Finish, OutputOptions, Prompt, TextPrompt, TokenPrompt, Usage
from protocols.sampling import SamplingParams
from protocols.stored import StoredRequest
from tests.actors.tokenizer import builders
from tests.actors.tokenizer.parts import Client, codec_of

KINDS = ("byte_level", "llama", "word_piece")


def stream_of(
    kind: str = "byte_level",
    prompt: str = "Hello",
    *,
    echo_of: Prompt | None = None,
    min_tokens: int = 0,
    logprobs: int | None = None,
    **options: Any,
) -> ChoiceStream:
    tokens = codec_of(kind).encode(prompt, add_special=True).tobytes()
    sampling = SamplingParams(min_tokens=min_tokens, logprobs=logprobs)
    output = OutputOptions(**options)
    made = Generate((5,), 3, echo_of or TokenPrompt(b""), SamplingParams(), output)
    return ChoiceStream(StoredRequest(made, Submit(5, 0, 0, tokens, sampling)), codec_of(kind))


def ids_of(text: str, kind: str = "byte_level") -> list[int]:
    found: list[int] = codec_of(kind).encode(text, add_special=False).tolist()
    return found


def bytes_of(text: str) -> list[int]:
    """Byte by byte, the worst tokenisation of all."""
    codec = codec_of("byte_level")
    single = {codec.names[i][1]: i for i in range(codec.pieces.tokenizer.get_vocab_size())}
    return [single[bytes([byte])] for byte in text.encode()]


def rows_of(tokens: list[int], finish: Finish = Finish.LENGTH, **last: Any) -> list[TokenRow]:
    """One token a row, as the scheduler sends them."""
    rows = [TokenRow(5, i, (token,)) for i, token in enumerate(tokens)]
    rows[-1] = msgspec.structs.replace(rows[-1], finish=finish, **last)
    return rows


def feed(stream: ChoiceStream, rows: list[TokenRow]) -> list[TextRow]:
    return [out for row in rows if (out := stream.take(row)) is not None]


def test_the_life_of_a_plain_choice() -> None:
    stream = stream_of(prompt="ab")
    rows = rows_of([*bytes_of("é"), *ids_of("x")])
    rows[0] = msgspec.structs.replace(rows[0], cached=1)
    prompt = len(ids_of("ab"))
    assert feed(stream, rows) == [
        TextRow(5, 0, "", 1, usage=Usage(prompt, 1, 1)),
        TextRow(5, 0, "é", 2),
        TextRow(5, 1, "x", 3, Finish.LENGTH, usage=Usage(prompt, 3, 1), first_token=2),
    ]
    assert stream.closed and stream.stopped_at == 0


def test_rows_without_text_are_left_out() -> None:
    sent = feed(stream_of(), rows_of(bytes_of("a😀b")))
    assert [(row.text, row.tokens) for row in sent] == [("a", 1), ("😀", 5), ("b", 6)]


def test_a_stop_token_is_counted_but_not_shown() -> None:
    eos = codec_of("byte_level").eos
    assert eos is not None
    last = feed(stream_of(), rows_of([*ids_of("x"), eos], Finish.STOP, stop_token=eos))[-1]
    assert (last.text, last.tokens, last.finish, last.stop) == ("", 2, Finish.STOP, eos)
    word = ids_of("x")[0]
    for include, text in ((False, ""), (True, "x")):
        sent = feed(stream_of(include_stop=include), rows_of([word], Finish.STOP, stop_token=word))
        assert (sent[0].text, sent[0].stop) == (text, word)
    shown = feed(
        stream_of(include_stop=True, skip_special=False), rows_of([eos], Finish.STOP, stop_token=eos)
    )
    assert shown[0].text == builders.EOS


def test_a_stop_string_across_tokens() -> None:
    stream = stream_of(stop=("END",))
    sent = feed(stream, rows_of(bytes_of("ab EN ENDcd")))
    assert "".join(row.text for row in sent) == "ab EN "
    assert all("E" not in row.text or "EN " in row.text for row in sent)
    last = sent[-1]
    assert (last.finish, last.stop, last.tokens) == (Finish.STOP, "END", len("ab EN END"))
    assert last.usage == Usage(len(ids_of("Hello")), 9, 0)
    assert stream.closed and stream.stopped_at == 9


def test_an_included_stop_string_ends_the_text() -> None:
    sent = feed(stream_of(stop=("END",), include_stop=True), rows_of(bytes_of("abENDcd")))
    assert "".join(row.text for row in sent) == "abEND"


def test_text_held_for_a_stop_string_comes_out_at_the_end() -> None:
    sent = feed(stream_of(stop=("END",)), rows_of(bytes_of("abEN")))
    assert [row.text for row in sent] == ["a", "b", "EN"]
    assert sent[-1].finish is Finish.LENGTH


def test_a_stop_string_at_the_last_token_is_a_stop() -> None:
    stream = stream_of(stop=("b",))
    sent = feed(stream, rows_of(bytes_of("ab")))
    assert (sent[-1].finish, sent[-1].stop, sent[-1].text) == (Finish.STOP, "b", "")


def test_a_stop_string_in_text_held_to_the_end() -> None:
    """The run of raw bytes ends with the output, and only then is text."""
    codec = codec_of("llama")
    run = [codec.pieces.tokenizer.token_to_id(f"<0x{byte:02X}>") for byte in "😀".encode()]
    last = feed(stream_of("llama", stop=("😀",)), rows_of(run))[-1]
    assert (last.text, last.finish, last.stop, last.tokens) == ("", Finish.STOP, "😀", 4)


def test_an_error_is_no_stop() -> None:
    error = ErrorBody(500, "x")
    stream = stream_of("llama", stop=("😀",))
    codec = codec_of("llama")
    run = [codec.pieces.tokenizer.token_to_id(f"<0x{byte:02X}>") for byte in "😀".encode()]
    last = feed(stream, rows_of(run, Finish.ERROR, error=error))[-1]
    assert (last.text, last.finish, last.stop, last.error) == ("😀", Finish.ERROR, None, error)


def test_stop_strings_are_not_looked_for_before_min_tokens() -> None:
    stream = stream_of(stop=("ab",), min_tokens=3)
    sent = feed(stream, rows_of(bytes_of("abaabx")))
    assert "".join(row.text for row in sent) == "aba"
    assert (sent[-1].stop, stream.stopped_at) == ("ab", 5)
    assert (
        "".join(r.text for r in feed(stream_of(stop=("ab",), min_tokens=1), rows_of(bytes_of("abx"))))
        == "abx"
    )


def test_ids_and_logprobs_speak_of_their_tokens() -> None:
    codec = codec_of("byte_level")
    tokens = bytes_of("é!")
    rows = [
        TokenRow(5, 0, tuple(tokens[:1]), logprobs=(Logprobs(-0.5, (tokens[2],), (-0.25,)),)),
        TokenRow(5, 1, tuple(tokens[1:]), Finish.LENGTH, logprobs=(Logprobs(-1.0), Logprobs(-2.0))),
    ]
    sent = feed(stream_of(token_ids=True, logprobs=1), rows)
    assert [(row.first_token, row.token_ids) for row in sent] == [(0, (tokens[0],)), (1, tuple(tokens[1:]))]
    first = sent[0].logprobs[0]
    assert first.token == ("\ufffd", b"\xc3", -0.5)
    assert first.top == (("!", b"!", -0.25),)
    assert [entry.token[1] for entry in sent[1].logprobs] == [b"\xa9", b"!"]
    assert codec.names[tokens[2]] == ("!", b"!")


def test_ids_and_logprobs_end_where_the_text_ends() -> None:
    tokens = bytes_of("abcd")
    row = TokenRow(5, 0, tuple(tokens), logprobs=tuple(Logprobs(-float(i)) for i in range(4)))
    (sent,) = feed(stream_of(token_ids=True, logprobs=0, stop=("c",)), [row])
    assert (sent.text, sent.tokens, sent.token_ids, len(sent.logprobs)) == ("ab", 3, tuple(tokens[:3]), 3)


def test_rows_that_overlap_are_cut_and_late_ones_dropped() -> None:
    stream = stream_of(token_ids=True)
    tokens = bytes_of("abcdef")
    feed(stream, [TokenRow(5, 0, tuple(tokens[:4]))])
    assert stream.take(TokenRow(5, 1, tuple(tokens[1:3]))) is None
    assert stream.take(TokenRow(5, 2, tuple(tokens[2:6]))) == TextRow(
        5, 4, "ef", 6, first_token=4, token_ids=tuple(tokens[4:]), pieces=(1, 1)
    )
    assert stream.take(TokenRow(5, 5, tuple(tokens[5:]), Finish.LENGTH)) is not None
    assert stream.take(TokenRow(5, 6, tuple(tokens))) is None


def test_a_finish_may_come_without_a_token() -> None:
    stream = stream_of(stop=("END",))
    feed(stream, [TokenRow(5, 0, tuple(bytes_of("aE")))])
    row = stream.take(TokenRow(5, 2, (), Finish.ABORT))
    assert row is not None
    assert (row.text, row.finish, row.tokens) == ("E", Finish.ABORT, 2)


def test_an_echo_comes_first() -> None:
    stream = stream_of(prompt="Hello", echo=True, echo_of=TextPrompt("Hello"))
    assert stream.opening() == [TextRow(5, 0, "Hello", 0, usage=Usage(len(ids_of("Hello")), 0, 0))]
    assert feed(stream, rows_of(ids_of("x")))[0].offset == 5
    assert stream_of().opening() == []


def test_an_echo_of_tokens_and_its_continuation_are_one_text() -> None:
    codec = codec_of("byte_level")
    tokens = bytes_of("x€")
    submit = Submit(5, 0, 0, np.asarray(tokens[:3], "<i4").tobytes(), SamplingParams())
    made = Generate((5,), 3, TokenPrompt(b""), SamplingParams(), OutputOptions(echo=True))
    stream = ChoiceStream(StoredRequest(made, submit), codec)
    opening = "".join(row.text for row in stream.opening())
    assert opening == "x"
    assert opening + feed(stream, rows_of(tokens[3:]))[0].text == "x€"


def test_a_long_echo_comes_in_slices() -> None:
    text = "a" * (ECHO_SLICE + 1)
    rows = stream_of(prompt="a", echo=True, echo_of=TextPrompt(text)).opening()
    assert [row.offset for row in rows] == [0, ECHO_SLICE]
    assert "".join(row.text for row in rows) == text


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_the_text_does_not_depend_on_how_tokens_are_cut_into_rows(kind: str, data: st.DataObject) -> None:
    codec = codec_of(kind)
    size = codec.pieces.tokenizer.get_vocab_size()
    tokens = data.draw(st.lists(st.integers(0, size - 1), min_size=1, max_size=25))
    stops = tuple(data.draw(st.lists(st.text("ab e\ufffd", min_size=1, max_size=3), max_size=3)))
    include, least = data.draw(st.booleans()), data.draw(st.integers(0, 8))
    ids = list(codec.encode("Hello", add_special=True).tolist())

    text, hit, count = "", None, len(tokens)
    pieces = codec.stream(ids, skip_special=True)
    skipped = 0
    for index, token in enumerate(tokens, 1):
        text += pieces.feed(token) + (pieces.flush() if index == len(tokens) else "")
        if index <= least and index < len(tokens):
            skipped = len(text)
            continue
        skipped = len(text) if index <= least else skipped
        found = [(text.find(stop, skipped), -len(stop), stop) for stop in stops if stop in text[skipped:]]
        if found:
            start, _, hit = min(found)
            text, count = text[: start + (len(hit) if include else 0)], index
            break

    edges = sorted({0, len(tokens), *data.draw(st.lists(st.integers(0, len(tokens)), max_size=6))})
    rows = []
    for start, end in itertools.pairwise(edges):
        start = data.draw(st.integers(0, start))
        finish = Finish.LENGTH if end == len(tokens) else Finish.NONE
        rows.append(TokenRow(5, start, tuple(tokens[start:end]), finish))
    client = Client()
    for row in feed(stream_of(kind, stop=stops, include_stop=include, min_tokens=least), rows):
        client.take(row)
    assert (client.text, client.tokens) == (text, count)
    assert (client.finish, client.stop) == ((Finish.STOP, hit) if hit else (Finish.LENGTH, None))


@pytest.mark.parametrize(("shown", "text"), [((), "a b"), (("<x>", builders.EOS), f"a{builders.EOS} b")])
def test_tags_that_are_special_tokens_are_shown_where_somebody_looks_for_them(
    shown: tuple[str, ...], text: str
) -> None:
    """As the end of a thought that a tokenizer calls special."""
    stream = stream_of(shown=shown)
    end = codec_of("byte_level").pieces.tokenizer.token_to_id(builders.EOS)
    rows = [stream.take(row) for row in rows_of([*ids_of("a"), end, *ids_of(" b")])]
    assert "".join(row.text for row in rows if row is not None) == text
