"""The demo model's corpus: packed rows of tokens, and what it may be examined on.

Training rows hold Python text, conversations and exercise sheets. Every row is a pure function of
(seed, step), so that a resumed run sees what an uninterrupted one would have seen. `held_out_sums`
and `questions` are the examination; other tests use them too.
"""

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from jinja2.sandbox import ImmutableSandboxedEnvironment
from numpy.typing import NDArray
from tokenizers import Tokenizer

from tools.demo import dialogues, facts, sums, tasks
from tools.demo.sums import held_out_sums as held_out_sums
from tools.demo.tokenizer import BOS, CHAT_TEMPLATE, END, START

WEIGHT = {"text": 0.5, "sheet": 1.0, "talk": 1.0}
"""What a token of each kind of row weighs: the few tokens of an answer are worth more than text."""

Segments = list[tuple[str, bool]]
"""A document as pieces of text, each with whether the model learns to predict it."""


@dataclass(frozen=True)
class Rows:
    """A batch of packed rows, all of shape [rows, length].

    `document` numbers the documents within a row: tokens attend within their own document only, and
    `position` starts at 0 in each. `weight` is how much the prediction of a token counts, or 0.
    """

    tokens: NDArray[np.int64]
    position: NDArray[np.int64]
    document: NDArray[np.int64]
    weight: NDArray[np.float32]


def render(talk: tasks.Talk) -> Segments:
    """A conversation as the chat template writes it, cut where learning starts and stops."""
    segments: Segments = []
    system = _system(talk)
    if system:
        segments.append((system, False))
    for role, content, learnt in talk.turns:
        segments += [
            (f"{START}{role}\n", False),
            (content + END, learnt),
            ("\n", False),
        ]
    return segments


def _system(talk: tasks.Talk) -> str:
    """The system message, written by the template itself."""
    if not (talk.system or talk.tools):
        return ""
    messages = [{"role": "system", "content": talk.system}] if talk.system else []
    return TEMPLATE.render(messages=messages, tools=talk.tools)


def _template() -> Any:
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.filters["tojson"] = lambda value: json.dumps(value, ensure_ascii=False)
    return environment.from_string(CHAT_TEMPLATE)


TEMPLATE = _template()


def copying_sheet(rng: random.Random) -> Segments:
    """Lines that are said twice; only the repetition is learnt. It is what teaches looking back."""
    segments: Segments = []
    for _ in range(rng.randrange(4, 12)):
        words = tasks.some_words(rng)
        segments += [(f"Say: {words}\n", False), (f"{words}\n", True)]
    return segments


def sums_sheet(rng: random.Random) -> Segments:
    """Sums as plain text, one a line; only the results are learnt."""
    segments: Segments = []
    for chosen in sums.sheet(rng, rng.randrange(8, 25)):
        segments += [(f"{chosen.a} {chosen.op} {chosen.b} =", False), (f" {chosen.result}\n", True)]
    return segments


def exercise_sheet(rng: random.Random) -> Segments:
    """A sheet of sums or of copying."""
    return rng.choice((sums_sheet, copying_sheet))(rng)


def conversation(rng: random.Random) -> Segments:
    return render(dialogues.conversation(rng))


def long_conversation(rng: random.Random) -> Segments:
    return render(dialogues.long_conversation(rng, rng.randrange(10, 60)))


def questions() -> list[tuple[str, str]]:
    """Some dozens of plain questions with their exact answers."""
    chosen = list(facts.TABLES["fixed"])
    for table, count in (
        ("capitals", 10),
        ("opposites", 8),
        ("sounds", 3),
        ("colours", 4),
        ("counts", 5),
        ("days", 4),
        ("months", 2),
    ):
        chosen += facts.TABLES[table][:count]
    pairs = [(fact.asks[0], fact.answer) for fact in chosen]
    pairs.append(("Count from 1 to 20.", ", ".join(map(str, range(1, 21)))))
    pairs.append(
        ("Answer in JSON: What is the capital of France?", '{"country": "France", "capital": "Paris"}')
    )
    return pairs


def follow_ups() -> list[tuple[list[dict[str, str]], str]]:
    """Conversations that need their own beginning, each with the exact last answer."""

    def said(*contents: str) -> list[dict[str, str]]:
        roles = ("user", "assistant")
        return [{"role": roles[i % 2], "content": text} for i, text in enumerate(contents)]

    ada = said("My name is Ada.", "Hello Ada! How can I help you?", "What is my name?")
    later = said(
        "My name is Grace.",
        "Hello Grace! How can I help you?",
        "What is 2 + 3?",
        "2 + 3 = 5.",
        "What is my name?",
    )
    green = said(
        "My favourite colour is green.", "I will remember that: green.", "What is my favourite colour?"
    )
    return [
        (ada, "Your name is Ada."),
        (later, "Your name is Grace."),
        (green, "Your favourite colour is green."),
    ]


def tokenizer_texts(documents: list[str], dialogue_count: int, seed: int) -> Iterator[str]:
    """What the tokenizer learns its merges from: the Python text and a sample of the dialogues."""
    yield from documents
    rng = random.Random(f"tokenizer {seed}")
    for _ in range(dialogue_count):
        for text, _learnt in conversation(rng):
            yield text


class Packer:
    """Fills rows with documents, each cut at the end of its row."""

    def __init__(self, tokenizer: Tokenizer, text: NDArray[np.uint16], seed: int) -> None:
        self._tokenizer = tokenizer
        self._text = text
        self._seed = seed

    def rows(self, step: int, rows: int, length: int, mix: dict[str, float]) -> Rows:
        """One batch for `step`; `mix` gives the share of rows of text, sheet and talk."""
        rng = random.Random(f"{self._seed}:{step}")
        batch = Rows(
            tokens=np.zeros((rows, length), np.int64),
            position=np.zeros((rows, length), np.int64),
            document=np.zeros((rows, length), np.int64),
            weight=np.zeros((rows, length), np.float32),
        )
        for row, kind in enumerate(_shares(rng, rows, mix)):
            self._fill(rng, kind, length, batch, row)
        return batch

    def _fill(self, rng: random.Random, kind: str, length: int, batch: Rows, row: int) -> None:
        start, number = 0, 0
        while start < length:
            ids, learn = self._document(rng, kind, length)
            ids, learn = ids[: length - start], learn[: length - start]
            end = start + len(ids)
            batch.tokens[row, start:end] = ids
            batch.position[row, start:end] = np.arange(len(ids))
            batch.document[row, start:end] = number
            batch.weight[row, start:end] = np.multiply(learn, WEIGHT[kind])
            start, number = end, number + 1

    def _document(self, rng: random.Random, kind: str, length: int) -> tuple[list[int], list[bool]]:
        match kind:
            case "text":
                at = rng.randrange(len(self._text) - length)
                return self._text[at : at + length].tolist(), [True] * length
            case "sheet":
                return self._encode(exercise_sheet(rng))
            case _ if length > 512:
                return self._encode(long_conversation(rng))
            case _:
                return self._encode(conversation(rng))

    def _encode(self, segments: Segments) -> tuple[list[int], list[bool]]:
        ids: list[int] = []
        learn: list[bool] = []
        encodings = self._tokenizer.encode_batch_fast([text for text, _ in segments])
        for (_, learnt), encoding in zip(segments, encodings, strict=True):
            ids += encoding.ids
            learn += [learnt] * len(encoding.ids)
        return ids, learn


def _shares(rng: random.Random, rows: int, mix: dict[str, float]) -> list[str]:
    """A kind for each row, as near to the shares of `mix` as whole rows allow."""
    total = sum(mix.values())
    kinds: list[str] = []
    offset, reached = rng.random(), 0.0
    for kind, share in mix.items():
        reached += share / total * rows
        while len(kinds) + offset < reached and len(kinds) < rows:
            kinds.append(kind)
    last = list(mix)[-1]
    return kinds + [last] * (rows - len(kinds))


def encode_text(tokenizer: Tokenizer, documents: list[str]) -> NDArray[np.uint16]:
    """All Python text as one array of token ids, each document after a `BOS`."""
    ids: list[int] = []
    for encoding in tokenizer.encode_batch_fast([BOS + text for text in documents]):
        ids += encoding.ids
    return np.array(ids, np.uint16)
