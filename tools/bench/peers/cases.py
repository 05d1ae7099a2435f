"""What is asked of every engine: greedy, end of sequence ignored, prompts of random tokens."""

from __future__ import annotations

import dataclasses

import numpy as np

from tools.bench.peers.tokenizer import FIRST_WORD

Prompts = list[list[int]]


@dataclasses.dataclass(frozen=True)
class Case:
    """`requests` at once, each with `shared` tokens that begin all prompts and `own` ones, answered with
    `output` tokens. streamed: over sockets by as many clients as `clients`, which only servers can do."""

    name: str
    requests: int
    own: int
    output: int
    shared: int = 0
    clients: int = 0

    @property
    def prefill(self) -> bool:
        """Whether its rate is that of prompt tokens."""
        return self.output == 1

    @property
    def tokens(self) -> int:
        """What counts for the rate of the whole case: prompt tokens of a prefill, else output tokens."""
        return self.requests * (self.shared + self.own if self.prefill else self.output)

    def brief(self) -> Case:
        """The same with short answers and no second turns, to warm up."""
        return dataclasses.replace(self, output=min(self.output, 8), requests=self.clients or self.requests)

    def prompts(self, vocabulary: int, seed: list[int]) -> Prompts:
        """Fresh prompts for each `seed`."""
        random = np.random.default_rng(seed)
        shared = random.integers(FIRST_WORD, vocabulary, self.shared)
        own = random.integers(FIRST_WORD, vocabulary, (self.requests, self.own))
        return [[*shared.tolist(), *row] for row in own.tolist()]

    def texts(self, seed: list[int]) -> list[str]:
        """Prompts of as many tokens as text, for streams."""
        random = np.random.default_rng(seed)
        return ["".join(map(str, row)) for row in random.integers(0, 10, (self.requests, self.own)).tolist()]


CASES = {
    case.name: case
    for case in (
        Case("D1", 1, 32, 128),
        Case("D16", 16, 128, 128),
        Case("P1", 1, 1024, 1),
        Case("S16", 16, 32, 32, shared=512),
        Case("C64", 128, 64, 64, clients=64),
    )
}
TITLES = {
    "D1": "1 × 32 in, 128 out",
    "D16": "16 × 128 in, 128 out",
    "P1": "1 × 1024 in",
    "S16": "16 × (512 shared + 32) in, 32 out",
    "C64": "64 clients, 64 in, 64 out",
}
