"""Streams of text against the library's decoding of the whole sequence."""

from __future__ import annotations

import functools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from actors.tokenizer.detokenizer import REPLACEMENT, ByteStream, PieceStream, WindowStream, open_stream
from actors.tokenizer.pieces import Joint, Pieces
from tests.actors.tokenizer import builders


@functools.cache
def pieces_of(kind: str) -> Pieces:
    return Pieces(builders.EXACT[kind]())


def deltas(pieces: Pieces, prompt: list[int], output: list[int], *, skip: bool) -> list[str]:
    stream = open_stream(pieces, prompt, skip_special=skip)
    return [*(stream.feed(token) for token in output), stream.flush()]


def decode(tokenizer: Tokenizer, ids: list[int], *, skip: bool) -> str:
    return str(tokenizer.decode(ids, skip_special_tokens=skip))


def tokens(kind: str) -> st.SearchStrategy[int]:
    """Ids of the vocabulary, some beyond it; raw bytes and special tokens more often than by chance."""
    tokenizer = builders.EXACT[kind]()
    size = tokenizer.get_vocab_size()
    raw = [i for text, i in tokenizer.get_vocab().items() if text.startswith("<0x") or len(text) == 1]
    return st.one_of(st.integers(0, size + 3), st.sampled_from(sorted(raw)), st.integers(0, 4))


@pytest.mark.parametrize("kind", builders.EXACT)
@settings(max_examples=300, deadline=None)
@given(data=st.data(), skip=st.booleans())
def test_random_tokens_decode_as_a_whole(kind: str, data: st.DataObject, skip: bool) -> None:
    output = data.draw(st.lists(tokens(kind), max_size=30))
    pieces = pieces_of(kind)
    assert "".join(deltas(pieces, [], output, skip=skip)) == decode(pieces.tokenizer, output, skip=skip)


@pytest.mark.parametrize("kind", ["byte_level", "metaspace", "word_piece", "bare"])
@settings(max_examples=300, deadline=None)
@given(data=st.data(), skip=st.booleans())
def test_an_output_adds_to_its_prompt_what_decoding_both_adds(
    kind: str, data: st.DataObject, skip: bool
) -> None:
    prompt = data.draw(st.lists(tokens(kind), max_size=12))
    output = data.draw(st.lists(tokens(kind), max_size=20))
    pieces = pieces_of(kind)
    pending = open_stream(pieces, prompt, skip_special=skip).pending
    before = decode(pieces.tokenizer, prompt, skip=skip)
    before = before.removesuffix(REPLACEMENT) if pending else before
    assert before + "".join(deltas(pieces, prompt, output, skip=skip)) == decode(
        pieces.tokenizer, prompt + output, skip=skip
    )


@pytest.mark.parametrize("kind", ["llama", "gemma"])
@settings(max_examples=300, deadline=None)
@given(data=st.data(), skip=st.booleans())
def test_byte_fallback_runs_end_with_their_prompt(kind: str, data: st.DataObject, skip: bool) -> None:
    """Where no run crosses the seam, prompt and output decode together."""
    prompt = data.draw(st.lists(tokens(kind), max_size=12))
    output = data.draw(st.lists(tokens(kind), max_size=20))
    pieces = pieces_of(kind)
    table = pieces.table(skip_special=skip)
    prompt_end = [piece for token in prompt if (piece := table[token])][-1:]
    if prompt_end and isinstance(prompt_end[0], bytes):
        prompt = [*prompt, pieces.tokenizer.token_to_id("e")]
    before = decode(pieces.tokenizer, prompt, skip=skip)
    assert before + "".join(deltas(pieces, prompt, output, skip=skip)) == decode(
        pieces.tokenizer, prompt + output, skip=skip
    )


TEXTS = st.text(
    st.one_of(st.characters(codec="utf-8"), st.sampled_from("ab é日😀👩‍👧ש\n\t ▁<>")), min_size=1, max_size=40
)


@pytest.mark.parametrize("kind", ["byte_level", "llama", "gemma"])
@settings(max_examples=200, deadline=None)
@given(text=TEXTS)
def test_text_comes_back_and_never_through_a_replacement_character(kind: str, text: str) -> None:
    pieces = pieces_of(kind)
    ids = pieces.tokenizer.encode(text, add_special_tokens=False).ids
    got = deltas(pieces, [], ids, skip=False)
    whole = decode(pieces.tokenizer, ids, skip=False)
    assert "".join(got) == whole
    assert sum(part.count(REPLACEMENT) for part in got) == whole.count(REPLACEMENT)


@pytest.mark.parametrize("kind", ["byte_level", "llama"])
@settings(max_examples=300, deadline=None)
@given(raw=st.lists(st.binary(min_size=1, max_size=6), max_size=8))
def test_malformed_bytes(kind: str, raw: list[bytes]) -> None:
    pieces = pieces_of(kind)
    tokenizer = pieces.tokenizer
    single = {pieces.token_bytes(i): i for i in range(tokenizer.get_vocab_size())}
    ids = [single[bytes([byte])] for chunk in raw for byte in chunk]
    got = deltas(pieces, [], ids, skip=True)
    assert "".join(got) == decode(tokenizer, ids, skip=True)
    assert pieces.shape.joint is not Joint.BYTES or "".join(got) == b"".join(raw).decode("utf-8", "replace")


def test_a_split_character_is_held_back_until_it_is_complete() -> None:
    pieces = pieces_of("byte_level")
    single = {pieces.token_bytes(i): i for i in range(pieces.tokenizer.get_vocab_size())}
    ids = [single[bytes([byte])] for byte in "a😀é".encode()]
    assert deltas(pieces, [], ids, skip=True) == ["a", "", "", "", "😀", "", "é", ""]


def test_a_run_of_raw_bytes_comes_out_when_it_ends() -> None:
    pieces = pieces_of("llama")
    ids = [pieces.tokenizer.token_to_id(f"<0x{byte:02X}>") for byte in "😀".encode()]
    ids.append(pieces.tokenizer.token_to_id("e"))
    assert deltas(pieces, [], ids, skip=True) == ["", "", "", "", "😀e", ""]


def test_a_character_begun_by_the_prompt_belongs_to_the_output() -> None:
    for kind in ("byte_level", "llama"):
        pieces = pieces_of(kind)
        single = {pieces.token_bytes(i): i for i in range(pieces.tokenizer.get_vocab_size())}
        ids = [single[bytes([byte])] for byte in "€".encode()]
        assert "".join(deltas(pieces, ids[:2], ids[2:], skip=True)) == "€"


def test_a_character_that_ends_the_prompt_is_not_repeated() -> None:
    pieces = pieces_of("llama")
    prompt = pieces.tokenizer.encode("so 🦊").ids
    assert pieces.tokenizer.id_to_token(prompt[-1]).startswith("<0x")
    assert "".join(deltas(pieces, prompt, pieces.tokenizer.encode("Hello").ids[1:], skip=True)) == " Hello"


def test_leading_space_depends_on_the_prompt() -> None:
    pieces = pieces_of("llama")
    hello = pieces.tokenizer.encode("Hello").ids[1:]
    bos = [pieces.tokenizer.token_to_id(builders.BOS)]
    assert "".join(deltas(pieces, bos, hello, skip=True)) == "Hello"
    assert "".join(deltas(pieces, bos + hello, hello, skip=True)) == " Hello"


def test_special_tokens_are_left_out_or_shown() -> None:
    pieces = pieces_of("byte_level")
    tokenizer = pieces.tokenizer
    ids = [*tokenizer.encode("ab").ids, tokenizer.token_to_id(builders.EOS), *tokenizer.encode("c").ids]
    assert "".join(deltas(pieces, [], ids, skip=True)) == "abc"
    assert "".join(deltas(pieces, [], ids, skip=False)) == "ab</s>c"
    assert "".join(deltas(pieces, [], [tokenizer.token_to_id("<tool_call>")], skip=True)) == "<tool_call>"


def test_unknown_ids_have_no_text() -> None:
    for kind in builders.EXACT:
        assert "".join(deltas(pieces_of(kind), [], [10**6, -1], skip=True)) == ""


def test_the_kind_of_stream_follows_the_decoder() -> None:
    streams = {kind: type(open_stream(pieces_of(kind), [], skip_special=True)) for kind in builders.EXACT}
    assert streams.pop("byte_level") is ByteStream
    assert set(streams.values()) == {PieceStream}
    assert isinstance(open_stream(Pieces(builders.end_of_word()), [], skip_special=True), WindowStream)


@settings(max_examples=100, deadline=None)
@given(
    words=st.lists(st.sampled_from(["hello", "the", "lazy", "dog", "12345", "."]), min_size=1, max_size=20)
)
def test_a_window_follows_any_other_decoder(words: list[str]) -> None:
    pieces = Pieces(builders.end_of_word())
    ids = pieces.tokenizer.encode(" ".join(words)).ids
    whole = decode(pieces.tokenizer, ids, skip=True)
    assert "".join(deltas(pieces, [], ids, skip=True)) == whole
    cut = len(ids) // 2
    before = decode(pieces.tokenizer, ids[:cut], skip=True)
    assert before + "".join(deltas(pieces, ids[:cut], ids[cut:], skip=True)) == whole


def test_bytes_of_single_tokens_are_exact() -> None:
    for kind in ("byte_level", "llama", "gemma"):
        pieces = pieces_of(kind)
        text = "é😀 Hello 日本 \x00"
        ids = pieces.tokenizer.encode(text, add_special_tokens=False).ids
        joined = b"".join(pieces.token_bytes(token) for token in ids).decode()
        assert joined.removeprefix(" ") == text
    assert (
        pieces_of("word_piece").token_bytes(pieces_of("word_piece").tokenizer.token_to_id("the")) == b" the"
    )
    window = Pieces(builders.end_of_word())
    assert window.token_bytes(window.tokenizer.token_to_id("the</w>")) == b"the"
