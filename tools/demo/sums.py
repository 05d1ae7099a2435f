"""Small sums: how they are asked, how they are answered, and which are kept out of training.

An answer always restates the sum in one normal form, ``12 + 30 = 42.``: whatever the phrasing was,
the two numbers end up next to each other, which is what lets a very small model get them right.

Additions and subtractions take numbers from 0 to 99. One unordered pair in ten (by hash, and only
pairs with a number of two digits) is held out: no training text holds the sum of such a pair in
either order. Multiplications go up to 9 x 9 and are simply learnt by heart.
"""

import hashlib
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

Op = Literal["+", "-", "x"]

ASK: dict[Op, tuple[str, ...]] = {
    "+": (
        "What is {a} + {b}?",
        "{a}+{b}=",
        "{a} + {b} =",
        "{a} + {b}",
        "{a}+{b}",
        "{a} + {b} = ?",
        "Please add {a} and {b}.",
        "please add {a} and {b}",
        "Add {a} and {b}.",
        "Add {a} to {b}",
        "What is {a} plus {b}?",
        "{a} plus {b}",
        "What's {a}+{b}?",
        "How much is {a} + {b}?",
        "How much is {a} plus {b}?",
        "Calculate {a} + {b}.",
        "Compute {a}+{b}",
        "What is the sum of {a} and {b}?",
        "Can you add {a} and {b}?",
        "Tell me what {a} + {b} is.",
        "Solve {a} + {b}",
        "What does {a} + {b} equal?",
        "I have {a} apples and I get {b} more. How many apples do I have?",
        "There are {a} birds in a tree and {b} birds join them. How many birds are there?",
    ),
    "-": (
        "What is {a} - {b}?",
        "{a}-{b}=",
        "{a} - {b} =",
        "{a} - {b}",
        "{a}-{b}",
        "{a} - {b} = ?",
        "Please subtract {b} from {a}.",
        "Subtract {b} from {a}",
        "Take {b} away from {a}.",
        "What is {a} minus {b}?",
        "{a} minus {b}",
        "What's {a}-{b}?",
        "How much is {a} - {b}?",
        "How much is {a} minus {b}?",
        "Calculate {a} - {b}.",
        "Compute {a}-{b}",
        "Tell me what {a} - {b} is.",
        "Solve {a} - {b}",
        "What does {a} - {b} equal?",
        "I have {a} apples and I eat {b}. How many apples are left?",
    ),
    "x": (
        "What is {a} x {b}?",
        "{a}x{b}=",
        "{a} * {b} =",
        "{a} * {b}",
        "{a}*{b}",
        "{a} x {b} = ?",
        "Multiply {a} by {b}.",
        "Please multiply {a} and {b}.",
        "What is {a} times {b}?",
        "{a} times {b}",
        "What's {a}*{b}?",
        "How much is {a} times {b}?",
        "Calculate {a} x {b}.",
        "Compute {a}*{b}",
        "What is the product of {a} and {b}?",
        "What is {a} multiplied by {b}?",
        "There are {a} boxes with {b} pens in each. How many pens are there?",
    ),
}

ONLY_NUMBER = (
    "Answer with just the number: {q}",
    "{q} Answer with the number only.",
    "{q} Just the number, please.",
)

WORDS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen "
    "sixteen seventeen eighteen nineteen twenty"
).split()

TOO_BIG = "That is too big for me: I add and subtract numbers up to 99, and I multiply up to 9 x 9."


@dataclass(frozen=True)
class Sum:
    """One sum; ``answer`` is what the demo model is trained to say."""

    a: int
    op: Op
    b: int

    @property
    def result(self) -> int:
        match self.op:
            case "+":
                return self.a + self.b
            case "-":
                return self.a - self.b
            case "x":
                return self.a * self.b

    @property
    def line(self) -> str:
        return f"{self.a} {self.op} {self.b} = {self.result}"

    @property
    def answer(self) -> str:
        return self.line + "."

    @property
    def held_out(self) -> bool:
        """Whether no training text may hold this sum."""
        low, high = sorted((self.a, self.b))
        if self.op == "x" or not 10 <= high < 100:
            return False
        digest = hashlib.sha256(f"{self.op}:{low}:{high}".encode()).digest()
        return digest[0] % 10 == 0

    def ask(self, rng: random.Random) -> str:
        return rng.choice(ASK[self.op]).format(a=self.a, b=self.b)


def draw(rng: random.Random, op: Op | None = None) -> Sum:
    """A sum for training, never a held-out one."""
    while True:
        chosen = op or rng.choices(("+", "-", "x"), (5, 4, 2))[0]
        found = _draw_any(rng, chosen)
        if not found.held_out:
            return found


def _draw_any(rng: random.Random, op: Op) -> Sum:
    if op == "x":
        return Sum(rng.randrange(10), op, rng.randrange(10))
    top = rng.choice((10, 20, 100, 100, 100, 100, 100))
    a, b = rng.randrange(top), rng.randrange(rng.choice((10, 100, 100, 100)))
    if op == "-" and a < b and rng.random() < 0.7:
        a, b = b, a
    return Sum(a, op, b)


def held_out_sums(op: Op, count: int, seed: int = 0) -> Iterator[tuple[str, Sum]]:
    """`count` questions with their sums, the same for the same seed.

    Additions and subtractions (with results of 0 or more) are held-out ones; multiplications, which
    are learnt by heart, are any.
    """
    rng = random.Random(f"held out {op} {seed}")
    every = [Sum(a, op, b) for a in range(100) for b in range(100)]
    if op == "x":
        pool = [s for s in every if s.a < 10 and s.b < 10]
    else:
        pool = [s for s in every if s.held_out and s.result >= 0]
    for chosen in rng.sample(pool, min(count, len(pool))):
        yield chosen.ask(rng), chosen


def sheet(rng: random.Random, lines: int) -> list[Sum]:
    """Sums for one exercise sheet."""
    op: Op | None = rng.choice(("+", "-", "+", "-", None))
    return [draw(rng, op) for _ in range(lines)]


def in_words(rng: random.Random) -> tuple[str, str]:
    """A sum of small numbers spelt out, and its answer in digits."""
    op: Op = rng.choice(("+", "-", "x"))
    top = 10 if op == "x" else len(WORDS)
    a, b = rng.randrange(top), rng.randrange(top)
    if op == "-" and a < b:
        a, b = b, a
    asked = Sum(a, op, b)
    if asked.held_out:
        return in_words(rng)
    word = {"+": "plus", "-": "minus", "x": "times"}[op]
    ask = rng.choice(("What is {} {} {}?", "what's {} {} {}?", "{} {} {}", "How much is {} {} {}?"))
    return ask.format(WORDS[a], word, WORDS[b]), asked.answer


def too_big(rng: random.Random) -> tuple[str, str]:
    """A sum beyond the model, and its confession."""
    op: Op = rng.choice(("+", "-", "x"))
    a = rng.randrange(10 if op == "x" else 100, 10 ** rng.randrange(4, 7))
    b = rng.randrange(1, 10 ** rng.randrange(1, 6))
    if rng.random() < 0.5:
        a, b = b, a
    return Sum(a, op, b).ask(rng), TOO_BIG
