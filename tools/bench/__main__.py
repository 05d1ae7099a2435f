"""`python -m tools.bench [COMMAND]`: measure this machine; without one, most of them, one after another."""

from __future__ import annotations

import pathlib
from typing import Any

import click

from protocols.config import Config, read_model_card
from tools.actorctl.serve import DEMO_MODEL
from tools.bench import offline
from tools.bench.accuracy import accuracy
from tools.bench.breakdown import breakdown
from tools.bench.frontend import frontend
from tools.bench.gpu.command import gpu
from tools.bench.idle import idle
from tools.bench.ledger import ledger
from tools.bench.lora import lora
from tools.bench.memory import memory
from tools.bench.overlap import overlap
from tools.bench.peers.command import peers
from tools.bench.serve import serve
from tools.bench.speculate import speculate
from tools.bench.statistics import spread
from tools.bench.structured import structured
from tools.bench.watched import watched


@click.group(invoke_without_command=True)
@click.pass_context
def main(context: click.Context) -> None:
    """Benchmarks of rings, frontend, ledger, bare executor and serving."""
    if context.invoked_subcommand is None:
        for command in (
            ring_command,
            frontend,
            ledger,
            offline_command,
            serve,
            idle,
            overlap,
            speculate,
            structured,
        ):
            click.echo(f"\n## {command.name}\n")
            context.invoke(command)


@main.command("ring")
def ring_command() -> None:
    """Rings beside pyzmq over ipc://, with the same msgpack payloads."""
    from tools.bench import ring

    ring.main()


@main.command("offline")
@click.option("--model", type=click.Path(exists=True, path_type=pathlib.Path), default=DEMO_MODEL)
@click.option("--requests", default=16, show_default=True)
@click.option("--prompt", default=128, show_default=True, help="Tokens of a prompt.")
@click.option("--output", default=128, show_default=True, help="Tokens of an answer.")
@click.option("--repeats", default=3, show_default=True)
@click.option("--dtype", default="auto", show_default=True)
def offline_command(model: pathlib.Path, dtype: str, repeats: int, **case: Any) -> None:
    """The bare executor: prefill and decode rates without any actor."""
    config = Config(read_model_card(model), dtype=dtype, max_running=case["requests"])
    executor = offline.load_executor(config)
    figures = [offline.run(executor, config, offline.Case(**case), epoch) for epoch in range(1, repeats + 2)][
        1:
    ]
    click.echo(f"prefill {spread([figure.prefill_rate for figure in figures])} tok/s")
    click.echo(f"decode  {spread([figure.decode_rate for figure in figures])} tok/s")


main.add_command(accuracy)
main.add_command(breakdown)
main.add_command(gpu)
main.add_command(frontend)
main.add_command(idle)
main.add_command(ledger)
main.add_command(serve)
main.add_command(lora)
main.add_command(memory)
main.add_command(overlap)
main.add_command(speculate)
main.add_command(structured)
main.add_command(watched)
main.add_command(peers)

if __name__ == "__main__":
    main()
