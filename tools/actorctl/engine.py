"""`actorctl engine ...`: pause and resume generation, and what else concerns the engine as a whole."""

from __future__ import annotations

from typing import Any

import click

from protocols.standing import Memory, PauseMode
from tools.actorctl.output import facts, output_option
from tools.actorctl.target import Ask, administers, confirmed, orders, patient, yes_option

_modes = click.Choice([mode.value for mode in PauseMode])
_tags = click.argument("tags", nargs=-1, type=click.Choice([tag.value for tag in Memory]))
_ENDED = "What becomes of running requests: ended, queued again, stopped where they are, or finished."


@click.group()
def engine() -> None:
    """Pause, drain, put to sleep; memory, cache, settings."""


@engine.command()
@click.option("--mode", type=_modes, default=PauseMode.IN_PLACE.value, show_default=True, help=_ENDED)
@yes_option
@output_option
@orders
def pause(ask: Ask, mode: str, yes: bool, output: str) -> None:
    """Launch no more steps; new requests wait."""
    if mode == PauseMode.ABORT:
        confirmed("End every running request?", yes)
    facts(ask({"verb": "engine.pause", "mode": mode}), output, mode)


@engine.command()
@output_option
@orders
def resume(ask: Ask, output: str) -> None:
    """Generate again, and let requests in again."""
    facts(ask({"verb": "engine.resume"}), output, "running")


@engine.command()
@output_option
@patient
def drain(ask: Ask, output: str) -> None:
    """Let no new request in, and wait until none is open. `resume` lets them in again."""
    facts(ask({"verb": "engine.drain"}), output, "drained")


@engine.command()
@click.option("--mode", type=_modes, default=PauseMode.WAIT.value, show_default=True, help=_ENDED)
@yes_option
@output_option
@patient
def sleep(ask: Ask, mode: str, yes: bool, output: str) -> None:
    """Pause, and give all memory back."""
    if mode == PauseMode.ABORT:
        confirmed("End every running request?", yes)
    facts(_words(ask({"verb": "engine.sleep", "mode": mode}), output), output, "asleep")


@engine.command()
@output_option
@patient
def wake(ask: Ask, output: str) -> None:
    """Take all memory again, and generate."""
    facts(_words(ask({"verb": "engine.wake"}), output), output, "awake")


@engine.command("release-memory")
@_tags
@output_option
@patient
def release_memory(ask: Ask, tags: tuple[str, ...], output: str) -> None:
    """Give memory back to the system: all, or that of TAGS."""
    reply = ask({"verb": "memory.release", "tags": list(tags) or None})
    facts(_words(reply, output), output, "released")


@engine.command("resume-memory")
@_tags
@output_option
@patient
def resume_memory(ask: Ask, tags: tuple[str, ...], output: str) -> None:
    """Take it again: all, or that of TAGS."""
    reply = ask({"verb": "memory.restore", "tags": list(tags) or None})
    facts(_words(reply, output), output, "resumed")


@engine.command("slow-down")
@click.argument("seconds", type=click.FloatRange(0, 60))
@output_option
@orders
def slow_down(ask: Ask, seconds: float, output: str) -> None:
    """Have every executor wait before each step. SECONDS: 0 for none."""
    reply = ask({"verb": "engine.slow-down", "seconds": seconds})
    facts(_settings(reply, output), output, "adjusted")


@engine.command("set")
@click.argument("settings", nargs=-1, required=True, metavar="KEY=VALUE...")
@output_option
@orders
def set_(ask: Ask, settings: tuple[str, ...], output: str) -> None:
    """Change settings while the company runs.

    KEY is policy, speculate_tokens, speculate_rows or step_delay; KEY= for as the company was started.
    """
    reply = ask({"verb": "engine.set", "settings": dict(map(_setting, settings))})
    facts(_settings(reply, output), output, "adjusted")


@engine.command("freeze-gc")
@output_option
@orders
def freeze_gc(ask: Ask, output: str) -> None:
    """Have every actor collect garbage once and for all."""
    reply = ask({"verb": "engine.freeze-gc"})
    facts(reply if output in ("json", "yaml") else reply["objects"], output, "frozen")


@engine.command("flush-cache")
@output_option
@orders
def flush_cache(ask: Ask, output: str) -> None:
    """Forget every cached prefix that no running request uses."""
    facts(ask({"verb": "engine.flush-cache"}), output, "flushed")


@engine.command()
@output_option
@administers
def info(ask: Ask, output: str) -> None:
    """Every option, and what has changed since the start."""
    reply = ask({"verb": "server.info"})
    facts(reply if output in ("json", "yaml") else _flat(reply), output, reply["state"])


def _flat(reply: dict[str, Any]) -> dict[str, Any]:
    """Options as they are now, then how the company is."""
    options, settings = reply["options"], reply["settings"]
    changed = {name: value for name, value in settings.items() if value is not None}
    rest = {name: value for name, value in reply.items() if name not in ("options", "settings")}
    return {**options, "model": options["model"]["path"], **changed, **rest}


def _setting(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals:
        raise click.BadParameter(f"{text!r} is not KEY=VALUE.", param_hint="KEY=VALUE")
    for kind in (int, float):
        try:
            return name, kind(value)
        except ValueError:
            continue
    return name, value or None


def _settings(reply: dict[str, Any], output: str) -> dict[str, Any]:
    found: dict[str, Any] = reply if output in ("json", "yaml") else reply["settings"]
    return found


def _words(reply: dict[str, Any], output: str) -> dict[str, Any]:
    """The reply with its lists in words, for people."""
    if output in ("json", "yaml"):
        return reply
    sizes = ", ".join(f"{name} {size / 2**20:.0f} MiB" for name, size in reply["bytes"].items())
    return {**reply, "released": ", ".join(reply["released"]) or "nothing", "bytes": sizes}
