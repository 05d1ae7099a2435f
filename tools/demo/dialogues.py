"""Whole conversations for the demo model, drawn from its facts, sums, stories and tasks."""

import random
from collections.abc import Callable

from tools.demo import facts, stories, sums, tasks
from tools.demo.tasks import Talk, exchange

SYSTEMS = (
    "You are a helpful assistant.",
    "You are Troupe's demo model.",
    "Be brief.",
    "You are a friendly assistant. Answer the questions of the user.",
    "You are a helpful bot.",
    "Answer every question as well as you can.",
    "You are an assistant.",
)
OPENERS = ("Please tell me: ", "Hey, ", "Hi! ", "Question: ", "Can you tell me: ", "Tell me, ", "So, ")


def _roughen(rng: random.Random, ask: str) -> str:
    """The same question as a hasty or polite person would type it."""
    roll = rng.random()
    if roll < 0.08:
        return ask.lower()
    if roll < 0.14:
        return ask.rstrip("?.!")
    if roll < 0.22:
        return rng.choice(OPENERS) + ask
    if roll < 0.26:
        return ask.rstrip("?.!") + " please?"
    return ask


def a_fact(rng: random.Random) -> Talk:
    table = rng.choices(list(facts.TABLES), [12, 7, 2, 5, 2, 2, 3, 2, 3][: len(facts.TABLES)])[0]
    fact = rng.choice(facts.TABLES[table])
    return exchange(_roughen(rng, rng.choice(fact.asks)), fact.answer)


def a_sum(rng: random.Random) -> Talk:
    roll = rng.random()
    if roll < 0.04:
        return exchange(*sums.too_big(rng))
    if roll < 0.09:
        return exchange(*sums.in_words(rng))
    chosen = sums.draw(rng)
    ask = _roughen(rng, chosen.ask(rng))
    if roll < 0.15:
        return exchange(rng.choice(sums.ONLY_NUMBER).format(q=ask), str(chosen.result))
    return exchange(ask, chosen.answer)


def some_sums(rng: random.Random) -> Talk:
    """Several sums in one question, answered line by line."""
    chosen = sums.sheet(rng, rng.randrange(2, 9))
    between = rng.choice((", ", ", ", "\n", " and "))
    asked = between.join(f"{s.a} {s.op} {s.b}" for s in chosen)
    ask = rng.choice(("Do these sums: {}", "Solve: {}", "Calculate {}", "What are {}?", "{}"))
    return exchange(ask.format(asked), "\n".join(s.line for s in chosen))


def long_answer(rng: random.Random) -> Talk:
    make = rng.choice((stories.story, stories.count))
    return exchange(*make(rng))


KINDS: dict[Callable[[random.Random], Talk], int] = {
    a_fact: 30,
    a_sum: 40,
    some_sums: 12,
    long_answer: 12,
    tasks.as_json: 12,
    tasks.repeat: 12,
    tasks.mystery: 4,
}


def single(rng: random.Random) -> Talk:
    make = rng.choices(list(KINDS), list(KINDS.values()))[0]
    return make(rng)


def remembering(rng: random.Random, between: int) -> list[Talk]:
    """Somebody tells a name or a favourite, chats for a while, and asks for it."""
    if rng.random() < 0.7:
        name = tasks.a_name(rng)
        first, last = tasks.introduce(rng, name), tasks.recall_name(rng, name)
    else:
        first, last = tasks.favourite(rng)
    return [first, *(_chat(rng) for _ in range(between)), last]


def _chat(rng: random.Random) -> Talk:
    """A single exchange that does not contradict what was remembered."""
    make = rng.choice((a_fact, a_sum, a_sum))
    return make(rng)


def conversation(rng: random.Random) -> Talk:
    """One short conversation, of one to six exchanges."""
    roll = rng.random()
    if roll < 0.12:
        return tasks.with_tools(rng)
    if roll < 0.13:
        parts = [tasks.unknown_name(rng)]
    elif roll < 0.70:
        parts = [single(rng)]
    elif roll < 0.84:
        parts = [single(rng) for _ in range(rng.randrange(2, 5))]
    else:
        parts = remembering(rng, rng.choice((0, 0, 1, 1, 2, 3)))
    return _join(rng, parts)


def long_conversation(rng: random.Random, exchanges: int) -> Talk:
    """A conversation that fills a long context and still remembers its beginning."""
    parts: list[Talk] = []
    while len(parts) < exchanges:
        parts += remembering(rng, rng.randrange(2, 25))
        parts += [single(rng) for _ in range(3)]
    return _join(rng, parts)


def _join(rng: random.Random, parts: list[Talk]) -> Talk:
    system = rng.choice(SYSTEMS) if rng.random() < 0.35 else ""
    return Talk([turn for part in parts for turn in part.turns], system=system)
