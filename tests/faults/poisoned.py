"""A company whose executor dies of one token: `python -m tests.faults.poisoned NAME`.

As an entry, `run` is the hash executor's actor with one change: a prompt that holds `POISON` aborts the
process, as a kernel that divides by zero would.
"""

from __future__ import annotations

import dataclasses
import os
import sys

import numpy as np

from actors import executor as real
from actors.company import company
from gpu.hash_executor import Flight, HashExecutor
from protocols.config import Config, ExecutorKind, read_model_card
from protocols.messages import ExecutorMail
from protocols.plan import Plan
from runtime.actor import Context
from runtime.supervisor import supervise
from runtime.tree import Child, Group
from tools.actorctl.serve import DEMO_MODEL

POISON = 4000

accepts = real.accepts


class Poisoned(HashExecutor):
    """Aborts when a chunk holds the poison."""

    def launch(self, plan: Plan) -> Flight:
        """As a hash executor, unless it dies."""
        if any(POISON in np.frombuffer(chunk.tokens, "<i4") for chunk in plan.chunks):
            os.abort()
        return super().launch(plan)


async def run(context: Context[ExecutorMail]) -> None:
    """The executor actor over a `Poisoned`."""
    executor = Poisoned.load(context.config, context.progress)
    await real._announce(context, executor)
    await real.serve(context, executor)


def with_poison(member: Group | Child) -> Group | Child:
    """The tree with every executor replaced by ours."""
    if isinstance(member, Group):
        return dataclasses.replace(member, children=tuple(with_poison(child) for child in member.children))
    if member.kind == "executor":
        return dataclasses.replace(member, entry="tests.faults.poisoned:run", understudy="")
    return member


def main(name: str) -> int:
    card = read_model_card(DEMO_MODEL, name="demo")
    sound = company(Config(card, name=name, port=0, executor=ExecutorKind.HASH, step_ms=5.0))
    root = with_poison(sound.root)
    assert isinstance(root, Group)
    return supervise(dataclasses.replace(sound, root=root))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
