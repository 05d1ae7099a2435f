"""What there is to measure, in the order of its importance: each case is a process of its own."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

MODELS = ("qwen3", "qwen2", "mistral-window", "qwen3-moe")
"""Tiny models that are compared with transformers."""


@dataclasses.dataclass(frozen=True)
class Case:
    """section, of what: a shape or a model, "" for neither. seconds: that it may take. timed: it measures, so
    that nothing may run beside it."""

    section: str
    of: str
    seconds: float
    timed: bool = True

    @property
    def shaped(self) -> bool:
        """Whether it is done with the shape of a model."""
        return self.of not in ("", *MODELS)

    @property
    def title(self) -> str:
        """Its name in a report."""
        return f"{self.section} {self.of}".strip()


CASES = (
    Case("machine", "", 90),
    *(Case("exact", model, 240, timed=False) for model in MODELS),
    Case("speed", "8b", 180),
    Case("speed", "0.6b", 180),
    Case("steps", "8b", 120),
    Case("speed", "14b", 180),
    Case("ablations", "8b", 300),
    Case("workload", "0.6b", 120),
    Case("peers", "0.6b", 300),
    Case("served", "8b", 300),
    Case("killed", "8b", 240),
    Case("kernels", "8b", 150),
    Case("steps", "0.6b", 120),
    Case("steps", "14b", 120),
)
SECTIONS = tuple(dict.fromkeys(case.section for case in CASES))


def chosen(sections: Sequence[str], shapes: Sequence[str], *, rehearsal: bool) -> list[Case]:
    """The cases of these sections, all if there are none; instead of their own shapes, of these."""
    found = [case for case in CASES if not sections or case.section in sections]
    if rehearsal:
        shapes = ("smallest",)
        found = [case for case in found if case.of not in MODELS[1:3]]
    if not shapes:
        return found
    every = (
        dataclasses.replace(case, of=shape) if case.shaped else case for case in found for shape in shapes
    )
    return list(dict.fromkeys(every))


def rounds(cases: Sequence[Case]) -> Iterator[list[Case]]:
    """Cases that run beside one another: neighbours that measure nothing."""
    together: list[Case] = []
    for case in cases:
        if together and (case.timed or together[-1].timed):
            yield together
            together = []
        together.append(case)
    if together:
        yield together
