"""Chat templates in helper processes: what never ends is killed, and the others go on."""

from __future__ import annotations

import contextlib
import os
import pathlib
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from functools import partial

import pytest
import structlog
import trio
import trio.testing

from actors.tokenizer.helper_process import frame
from actors.tokenizer.helpers import HELPERS
from actors.tokenizer.render_helper import Sources
from actors.tokenizer.renderers import Renderers
from protocols.errors import UserError
from protocols.request import ChatPrompt
from tests.actors.tokenizer import templates
from tests.actors.tokenizer.hanging import refusal_of
from tests.actors.tokenizer.parts import chat, chat_template
from tests.patience import PATIENCE

SOURCES = Sources({"default": templates.CHATML}, {})
OFFERED = frame(SOURCES)
LOOPS = """{%- set ns = namespace(n=0) -%}
{%- if messages[0].content == 'for ever' -%}
{%- for a in range(99999) %}{% for b in range(99999) %}{% set ns.n = ns.n + 1 %}{% endfor %}{% endfor -%}
{%- elif messages[0].content == 'memory' -%}
{%- set ns.all = [] -%}
{%- for a in range(9999) %}{% set ns.all = ns.all + ['x' * 4000000 ~ a] %}{% endfor -%}
{%- elif messages[0].content == 'endless' -%}
{%- for a in range(99999) %}{{ 'x' * 1000 }}{% endfor -%}
{%- else -%}{{ messages[0].content }}{%- endif -%}"""


@contextlib.contextmanager
def renderers(template: str, seconds: float = 60.0) -> Iterator[Renderers]:
    made = Renderers(Sources({"default": template}, {}), seconds, structlog.get_logger("test"))
    with contextlib.closing(made):
        yield made


def pids(made: Renderers) -> list[int]:
    return made.helpers.pids


async def test_the_same_text_as_in_this_process() -> None:
    with renderers(templates.CHATML) as made:
        for prompt in (chat("Hi"), chat("Hi", continue_final=True), chat("ü" * 100_000)):
            assert await made.render(prompt) == chat_template().render(prompt)
        (pid,) = pids(made)
        assert await made.render(chat("again")) and pids(made) == [pid]
    assert not pathlib.Path(f"/proc/{pid}").exists()


async def test_refusals_are_the_templates_own() -> None:
    with renderers("{{ raise_exception('not so') }}") as made:
        with pytest.raises(UserError, match="the chat template refused: not so"):
            await made.render(chat("Hi"))
        with pytest.raises(UserError, match="messages is not valid JSON"):
            await made.render(ChatPrompt(b"["))


@pytest.mark.parametrize(
    ("text", "sentence"), [("endless", "would exceed"), ("memory", "could not render|within|died|exceed")]
)
async def test_what_grows_without_end_is_refused(text: str, sentence: str) -> None:
    with renderers(LOOPS, 20.0) as made:
        with pytest.raises(UserError, match=sentence) as caught:
            await made.render(chat(text))
        assert caught.value.body.status == 400
        assert await made.render(chat("still here")) == "still here"


async def test_what_never_ends_is_killed_while_the_others_go_on() -> None:
    with renderers(LOOPS, 3.0) as made:
        assert await made.render(chat("warm")) == "warm"
        endless, meanwhile = (partial(made.render, chat(text)) for text in ("for ever", "meanwhile"))
        error = await refusal_of(endless, meanwhile=meanwhile)
        assert error.body.status == 400 and "within 3 s" in error.body.message
        assert await made.render(chat("afterwards")) == "afterwards"
        assert len(pids(made)) == HELPERS


async def test_a_helper_that_somebody_kills_is_replaced_unseen() -> None:
    with renderers(templates.CHATML) as made:
        assert await made.render(chat("Hi"))
        os.kill(pids(made)[0], signal.SIGKILL)
        assert await made.render(chat("Hi")) == chat_template().render(chat("Hi"))


async def test_who_is_cancelled_leaves_no_helper_in_the_middle_of_a_prompt() -> None:
    with renderers(LOOPS) as made:
        assert await made.render(chat("warm")) == "warm"
        (before,) = pids(made)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(made.render, chat("for ever"))
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        assert before not in pids(made)
        assert await made.render(chat("next")) == "next"


@pytest.mark.parametrize("said", [b"", OFFERED[:9], OFFERED, OFFERED + frame(chat("Hi"))])
def test_a_helper_whose_tokenizer_is_gone_ends_without_a_word(said: bytes) -> None:
    """Also where it dies with an answer unread, which resets the connection."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        command = [sys.executable, "-m", "actors.tokenizer.render_helper", str(theirs.fileno())]
        helper = subprocess.Popen(command, stderr=subprocess.PIPE, pass_fds=(theirs.fileno(),))
        theirs.close()
        ours.sendall(said)
        if len(said) >= len(OFFERED):
            assert ours.recv(1, socket.MSG_PEEK)
        ours.close()
        _, complaint = helper.communicate(timeout=PATIENCE)
    assert (helper.returncode, complaint) == (0, b"")
