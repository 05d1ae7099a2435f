"""The `actorctl` command."""

from __future__ import annotations

import importlib.metadata
from typing import Any

import click
from click.shell_completion import get_completion_class

from tools.actorctl.actor import actor
from tools.actorctl.chat import chat
from tools.actorctl.doctor import doctor
from tools.actorctl.engine import engine
from tools.actorctl.experts import experts
from tools.actorctl.keys import keys
from tools.actorctl.logs import log_level, logs
from tools.actorctl.lora import lora
from tools.actorctl.metrics import metrics
from tools.actorctl.output import done, facts, output_option
from tools.actorctl.profile import profile
from tools.actorctl.request import request
from tools.actorctl.serve import serve
from tools.actorctl.session import session
from tools.actorctl.status import status
from tools.actorctl.target import FAILED, Ask, administers, fail
from tools.actorctl.top import top
from tools.actorctl.trace import trace
from tools.actorctl.weights import weights


class _Commands(click.Group):
    """What the system refuses ends a command with a sentence; a reader who has gone, with none."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            raise
        except OSError as error:
            place = f"{error.filename}: " if error.filename else ""
            fail(f"{place}{error.strerror or error}.", FAILED)


@click.group(
    cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110}
)
@click.version_option(package_name="troupe", message="%(version)s")
def main() -> None:
    """Serve language models with Troupe, and look after a running company.

    Exit codes: 0 ok, 1 failed, 2 usage, 3 unhealthy, 4 not found, 5 conflict, 69 unreachable, 124 timeout,
    130 interrupted.
    """


@main.command()
@output_option
def version(output: str) -> None:
    """Print the version."""
    found = importlib.metadata.version("troupe")
    if output in ("table", "wide"):
        click.echo(found)
    else:
        facts({"version": found}, output, found)


@main.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print a script that completes commands.

    For this shell alone: eval "$(actorctl completion bash)".
    """
    kind = get_completion_class(shell)
    assert kind is not None
    click.echo(kind(main, {}, "actorctl", "_ACTORCTL_COMPLETE").source())


@main.command()
@click.option("--now", is_flag=True, help="Do not wait for open requests.")
@output_option
@administers
def stop(ask: Ask, now: bool, output: str) -> None:
    """Drain and stop the company."""
    reply = ask({"verb": "stop", "now": now})
    done(reply, output, reply["name"], f"the company {reply['name']} is stopping.")


for command in (
    *(serve, status, actor, engine, request, session, lora, experts, keys, top, chat, weights),
    *(trace, profile, metrics, logs, log_level, doctor),
):
    main.add_command(command)


if __name__ == "__main__":
    main()
