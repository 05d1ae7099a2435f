"""`actorctl chat`: talk with the model in the terminal, or in a pipe."""

from __future__ import annotations

import contextlib
import sys
import unicodedata
from typing import Any

import click

from tools.actorctl.answer import Answer, Gone, Refused, Server, stream
from tools.actorctl.target import FAILED, INTERRUPTED, UNREACHABLE, Ask, administers, fail

HELP = "/reset begins anew, /quit or Ctrl-D leaves, Ctrl-C stops an answer."


def _web(_: click.Context, option: click.Parameter, url: str) -> str:
    """The address of a server, without the `/v1` that clients are given."""
    if url and not url.startswith(("http://", "https://")):
        raise click.BadParameter("an address begins with http:// or https://.", param=option)
    return url.rstrip("/").removesuffix("/v1")


@click.command()
@click.argument("message", required=False)
@click.option("--url", default="", callback=_web, help="Server to talk to. [default: this machine's company]")
@click.option("--api-key", default="", envvar="TROUPE_API_KEY", help="Key, where the server wants one.")
@click.option(
    "--cacert",
    type=click.Path(exists=True, dir_okay=False),
    help="Certificates (PEM) to trust instead of the system's.",
)
@click.option("--model", default="", help="Model to talk to. [default: the first that is served]")
@click.option("--system", default="", help="Instructions for the model.")
@click.option("--temperature", type=click.FloatRange(0, 100), help="0 is greedy. [default: the model's]")
@click.option("--seed", type=click.IntRange(min=0), help="The same seed gives the same answer.")
@click.option("--max-tokens", type=click.IntRange(min=1), help="Longest answer.")
@administers
def chat(
    ask: Ask,
    message: str | None,
    url: str,
    api_key: str,
    cacert: str | None,
    model: str,
    system: str,
    temperature: float | None,
    seed: int | None,
    max_tokens: int | None,
) -> None:
    """Talk with the model. MESSAGE, or what is piped in, is answered once; else a conversation begins.

    The answer goes to stdout, everything else to stderr. /reset begins anew, /quit or Ctrl-D leaves,
    Ctrl-C stops an answer.
    """
    server = Server(url or str(ask({"verb": "status"})["url"]), api_key, cacert)
    options = {"temperature": temperature, "seed": seed, "max_output_tokens": max_tokens}
    fields: dict[str, Any] = {key: value for key, value in options.items() if value is not None}
    if system:
        fields["instructions"] = system
    try:
        served = server.models()
        fields["model"] = model or served[0]
        if message is None and sys.stdin.isatty():
            _converse(Talk(server, fields))
        else:
            Talk(server, fields).ask(message or _piped())
    except Gone as error:
        fail(str(error), UNREACHABLE)
    except Refused as error:
        fail(str(error), FAILED)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


def _piped() -> str:
    text = sys.stdin.read().strip()
    if not text:
        raise click.UsageError("there is no message: neither as an argument nor on stdin.")
    return text


class Talk:
    """A conversation. fields: what every request says."""

    def __init__(self, server: Server, fields: dict[str, Any]) -> None:
        self.fields = fields
        self._server = server
        self._said: list[dict[str, str]] = []

    def reset(self) -> None:
        """Forget what was said."""
        self._said.clear()

    def ask(self, message: str) -> None:
        """Print the answer as it comes and its figures; what was interrupted is kept as far as it came.

        The whole conversation is sent each time: the prefix cache makes that cheap, and nothing depends on
        what a server process remembers. Raises Refused, Gone, KeyboardInterrupt.
        """
        asked = [*self._said, {"role": "user", "content": message}]
        answer = Answer({**self.fields, "input": asked, "store": False})
        try:
            stream(self._server, answer, _show, lambda: _note("... the connection was lost; going on"))
        finally:
            if answer.text:
                click.echo()
                self._said = [*asked, {"role": "assistant", "content": answer.text}]
        _note(answer.summary)


def _converse(talk: Talk) -> None:
    """Read and answer until the end of the input."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  (gives input() its line editing)
    _note(f"Talking with {talk.fields['model']}. {HELP}")
    while (line := _read()) is not None:
        match line:
            case "":
                continue
            case "/quit":
                return
            case "/reset":
                talk.reset()
                _note("A new conversation.")
            case "/help":
                _note(HELP)
            case _:
                _answer(talk, line)


def _read() -> str | None:
    """The next line; None at the end of the input. Ctrl-C empties the line."""
    while True:
        try:
            return input("> ").strip()
        except EOFError:
            click.echo()
            return None
        except KeyboardInterrupt:
            click.echo()
            _note(HELP)


def _answer(talk: Talk, line: str) -> None:
    try:
        talk.ask(line)
    except KeyboardInterrupt:
        _note("stopped")
    except (Refused, Gone) as error:
        _note(f"The server says: {error}" if isinstance(error, Refused) else f"Sorry, {error}")


def _show(text: str) -> None:
    """Print a piece of an answer, without the control characters that a terminal would obey."""
    safe = "".join(each for each in text if each in "\n\t" or unicodedata.category(each) != "Cc")
    click.echo(safe if sys.stdout.isatty() else text, nl=False)
    sys.stdout.flush()


def _note(text: str) -> None:
    if text:
        click.secho(text, dim=True, err=True)
