"""Grammars made by helper processes: what takes too long, or kills one, is refused, and the others go on."""

from __future__ import annotations

import contextlib
import os
import pathlib
import signal
from collections.abc import Iterator
from functools import partial

import pytest
import structlog

from actors.tokenizer.codec import load_codec
from actors.tokenizer.grammar import GrammarMaker
from actors.tokenizer.grammar_helper import Wish
from actors.tokenizer.grammars import Grammars
from actors.tokenizer.helpers import HELPERS
from protocols.config import Config, read_model_card
from protocols.errors import UserError
from protocols.grammar import CACHED_GRAMMARS, Rules, Shape, Syntax, ToolRule
from tests.actors.tokenizer.hanging import refusal_of
from tools.actorctl.serve import DEMO_MODEL

CODEC = load_codec(DEMO_MODEL)


def wish(pattern: str) -> Wish:
    return Wish(Rules(Shape(Syntax.REGEX, pattern, "regex")))


@contextlib.contextmanager
def grammars(seconds: float = 60.0) -> Iterator[Grammars]:
    config = Config(read_model_card(DEMO_MODEL), tool_parser="hermes", grammar_seconds=seconds)
    with contextlib.closing(Grammars(config, CODEC, structlog.get_logger("test"))) as made:
        yield made


async def test_what_is_made_is_what_this_process_would_make_and_is_kept() -> None:
    maker = GrammarMaker(Config(read_model_card(DEMO_MODEL), tool_parser="hermes"), CODEC)
    thoughts = ("<think>", "</think>")
    with grammars() as made:
        assert not made.helpers.pids, "none is started before it is needed"
        for rules in (wish("a{3}").rules, Rules(tools=(ToolRule("f"),), forced=True)):
            for thinking in (False, True):
                expected = maker(rules, thoughts, thinking=thinking)
                assert await made.make(Wish(rules, thoughts, thinking)) == expected
        with pytest.raises(UserError, match="unclosed group") as caught:
            await made.make(wish("a("))
        assert caught.value.body.param == "regex"
        (pid,) = made.helpers.pids
        kept = await made.make(wish("b"))
        os.kill(pid, signal.SIGSTOP)
        assert await made.make(wish("b")) is kept, "nobody was asked"
    assert not pathlib.Path(f"/proc/{pid}").exists()


async def test_only_the_latest_are_kept() -> None:
    with grammars() as made:
        for index in range(CACHED_GRAMMARS + 3):
            await made.make(wish(f"a{{{index + 1}}}"))
        assert len(made._made) == CACHED_GRAMMARS and wish("a{1}") not in made._made


async def test_what_takes_too_long_is_refused_while_the_others_go_on() -> None:
    with grammars(3.0) as made:
        await made.make(wish("warm"))
        (pid,) = made.helpers.pids
        os.kill(pid, signal.SIGSTOP)
        never, meanwhile = (partial(made.make, wish(word)) for word in ("never", "meanwhile"))
        error = await refusal_of(never, meanwhile=meanwhile)
        assert error.body.status == 400 and error.body.param == "regex"
        assert "to read it took more than 3 s" in error.body.message
        assert not pathlib.Path(f"/proc/{pid}").exists()
        assert await made.make(wish("never")), "another helper had no trouble"
        assert len(made.helpers.pids) == HELPERS


async def test_what_kills_every_helper_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with grammars() as made:
        await made.make(wish("warm"))
        ask = type(made.helpers._idle[0]).ask

        async def dies(helper: object, question: object) -> object:
            os.kill(helper.pid, signal.SIGKILL)  # type: ignore[attr-defined]
            return await ask(helper, question)  # type: ignore[arg-type]

        with monkeypatch.context() as patched:
            patched.setattr("actors.tokenizer.helpers.Helper.ask", dies)
            with pytest.raises(UserError, match="more than the library can read"):
                await made.make(wish("deadly"))
        assert await made.make(wish("alive"))
