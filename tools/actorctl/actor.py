"""`actorctl actor ...`: the supervision tree, one actor, and making one go."""

from __future__ import annotations

import sys
from typing import Any

import click
from rich.console import Console
from rich.tree import Tree

from tools.actorctl import completing
from tools.actorctl.output import done, facts, output_option, show, watch_option, watching
from tools.actorctl.status import HEADINGS, WIDE, actor_rows
from tools.actorctl.target import NOT_FOUND, Ask, administers, confirmed, fail, yes_option


@click.group()
def actor() -> None:
    """Look at actors, restart or kill them."""


@actor.command()
@output_option
@administers
def tree(ask: Ask, output: str) -> None:
    """Show who is supervised by whom, and what happens when one dies."""
    document = ask({"verb": "tree"})
    if output in ("table", "wide"):
        Console(width=None if sys.stdout.isatty() else 200).print(_draw(document["tree"], None))
    else:
        show(document, list(_actors(document["tree"])), output, headings=())


def _draw(member: dict[str, Any], parent: Tree | None) -> Tree:
    if "children" not in member:
        label = f"{member['name']}  {member['state']}  pid {member['pid']}  restarts {member['restarts']}"
    else:
        budget = member["budget"]
        rule = f"{member['strategy']}, {budget['restarts']} restarts in {budget['seconds']:g} s"
        label = f"{member['name']}  {rule}"
    branch = Tree(label) if parent is None else parent.add(label)
    for child in member.get("children", ()):
        _draw(child, branch)
    return branch


def _actors(member: dict[str, Any]) -> list[dict[str, Any]]:
    if "children" not in member:
        return [member]
    return [leaf for child in member["children"] for leaf in _actors(child)]


@actor.command("list")
@watch_option
@output_option
@administers
def list_actors(ask: Ask, output: str, watch: float | None) -> None:
    """List all actors."""

    def look() -> None:
        document = ask({"verb": "status"})
        show({"actors": document["actors"]}, actor_rows(document), output, headings=HEADINGS, wide=WIDE)

    watching(look, watch)


@actor.command()
@click.argument("actor_name", metavar="NAME", shell_complete=completing.actors)
@output_option
@administers
def get(ask: Ask, actor_name: str, output: str) -> None:
    """Show one actor with every counter of its row on the board."""
    rows = [row for row in actor_rows(ask({"verb": "status"})) if row["name"] == actor_name]
    if not rows:
        fail(f"there is no actor {actor_name!r}; see `actorctl actor list`.", NOT_FOUND)
    facts = [{"name": key, "value": value} for key, value in rows[0].items()]
    wanted = rows if output == "name" else facts
    show(rows[0], wanted, output, headings=(("name", "FIELD"), ("value", "VALUE")))


@actor.command()
@click.argument("actor_name", metavar="NAME", shell_complete=completing.actors)
@output_option
@administers
def restart(ask: Ask, actor_name: str, output: str) -> None:
    """Have an actor finish what it does, and replace it."""
    reply = ask({"verb": "actor.restart", "name": actor_name})
    done(reply, output, actor_name, f"{actor_name} (pid {reply['pid']}) is being replaced.")


@actor.command()
@click.argument("actor_name", metavar="NAME", shell_complete=completing.actors)
@output_option
@administers
def stack(ask: Ask, actor_name: str, output: str) -> None:
    """Where every task and thread of an actor is."""
    document = ask({"verb": "actor.stack", "name": actor_name})
    if output in ("table", "wide"):
        click.echo(document["stack"])
    else:
        facts(document, output, actor_name)


@actor.command()
@click.argument("actor_name", metavar="NAME", shell_complete=completing.actors)
@yes_option
@output_option
@administers
def kill(ask: Ask, actor_name: str, yes: bool, output: str) -> None:
    """SIGKILL an actor; its supervisor replaces it."""
    confirmed(f"SIGKILL {actor_name}?", yes)
    reply = ask({"verb": "actor.kill", "name": actor_name})
    done(reply, output, actor_name, f"{actor_name} (pid {reply['pid']}) was killed.")
