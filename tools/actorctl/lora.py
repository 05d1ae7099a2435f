"""`actorctl lora ...`: LoRA adapters, loaded and unloaded while the company serves."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence

import click

from protocols.adapters import Adapter, check_name, digest_of
from protocols.errors import StartError, UserError
from tools.actorctl import completing
from tools.actorctl.output import facts, output_option, show
from tools.actorctl.target import Ask, orders, patient

HEADINGS = (("name", "NAME"), ("id", "ID"), ("pinned", "PINNED"), ("requests", "REQUESTS"))
WIDE = (("path", "PATH"), ("digest", "DIGEST"))


@click.group()
def lora() -> None:
    """Load, unload and list LoRA adapters."""


@lora.command("list")
@output_option
@orders
def list_adapters(ask: Ask, output: str) -> None:
    """List the adapters that are loaded."""
    document = ask({"verb": "lora.list"})
    show(document, document["adapters"], output, headings=HEADINGS, wide=WIDE)


@lora.command()
@click.argument("adapter", metavar="NAME")
@click.argument("path", type=click.Path(path_type=pathlib.Path))
@click.option("--pinned", is_flag=True, help="It keeps its slot, whoever else comes.")
@click.option("--replace", is_flag=True, help="In the place of one of this name, which its requests keep.")
@output_option
@patient
def load(ask: Ask, adapter: str, path: pathlib.Path, pinned: bool, replace: bool, output: str) -> None:
    """Load the PEFT directory PATH as NAME, on every replica or on none."""
    request = {"verb": "lora.load", "name": adapter, "path": str(path.expanduser().resolve())}
    facts(ask({**request, "pinned": pinned, "replace": replace}), output, adapter)


@lora.command()
@click.argument("adapter", metavar="NAME", shell_complete=completing.adapters)
@click.option("--drain", is_flag=True, help="Wait until no request goes through it; else that is refused.")
@output_option
@patient
def unload(ask: Ask, adapter: str, drain: bool, output: str) -> None:
    """Unload an adapter."""
    facts(ask({"verb": "lora.unload", "name": adapter, "drain": drain}), output, adapter)


def adapters_of(options: Sequence[str], model: str) -> tuple[Adapter, ...]:
    """The adapters that `--lora NAME=PATH` options name. StartError where one cannot be read."""
    adapters: dict[str, Adapter] = {}
    for option in options:
        name, _, path = option.partition("=")
        if not (name and path) or name in adapters:
            raise StartError(f"--lora {option}: each must be NAME=PATH with its own name.", exit_code=2)
        directory = pathlib.Path(path).expanduser().resolve()
        try:
            check_name(name, model)
            digest = digest_of(directory)
        except UserError as error:
            raise StartError(f"--lora {option}: {error}", exit_code=2) from error
        except OSError as error:
            raise StartError(f"--lora {option}: cannot read {error.filename}: {error.strerror}.") from error
        adapters[name] = Adapter(len(adapters) + 1, name, str(directory), digest)
    return tuple(adapters.values())
