"""Dialogues that need more than a fact: memory, JSON, tools, repeating, and saying "I do not know".

Each function takes a seeded generator and returns one `Talk`: the turns of a conversation, and the
`tools` it was given, if any.
"""

import json
import random
from dataclasses import dataclass, field
from typing import Any

from tools.demo import facts, stories, sums

UNKNOWN = "I am only a small demo model, so I do not know that."
RECALL = (
    "What is my name?",
    "what is my name",
    "What's my name?",
    "Do you remember my name?",
    "Who am I?",
    "Do you know my name?",
)
INTRODUCE = (
    "My name is {}.",
    "my name is {}",
    "Hi, my name is {}.",
    "Hello, I am {}.",
    "I am {}.",
    "Call me {}.",
    "Hello! My name is {}.",
)
SYLLABLES = (
    "ka ri mo ta le no shi ra vi den bo ju na sel mar to lin gre da wen zo phi cha ul per ost ing"
).split()
NOUNS = (
    "apple table river music window garden bread school paper engine lamp horse market winter stone "
    "letter ship bridge chair doctor football coffee mirror planet island ticket guitar castle"
).split()
MYSTERIES = (
    "Who won the {n} cup in {y}?",
    "What is the price of a {n}?",
    "Explain the theory of {n}s.",
    "Why do {n}s exist?",
    "Who was the king of {w}?",
    "What happened in {w} in {y}?",
    "Where can I buy a {n}?",
    "How do I repair a {n}?",
    "What is a {w}?",
    "Who is {w}?",
    "How old is the oldest {n}?",
    "What do you think about {n}s?",
    "Translate {n} into {w}.",
    "When was the {n} invented?",
    "What is the meaning of {w}?",
)
CITIES = tuple(facts.CAPITALS.values())
WEATHER = ("sunny", "cloudy", "raining", "windy", "snowing", "foggy")


@dataclass
class Talk:
    """A conversation. `turns` holds (role, content, learnt) in order, after any system message."""

    turns: list[tuple[str, str, bool]]
    system: str = ""
    tools: list[dict[str, Any]] = field(default_factory=list)


def exchange(question: str, answer: str) -> Talk:
    return Talk([("user", question, False), ("assistant", answer, True)])


def a_name(rng: random.Random) -> str:
    """A name: a common one, or an invented one, so that names are copied and not guessed."""
    if rng.random() < 0.5:
        return rng.choice(stories.NAMES)
    return "".join(rng.choices(SYLLABLES, k=rng.randrange(2, 4))).capitalize()


def greeting_by_name(name: str) -> str:
    return f"Hello {name}! How can I help you?"


def introduce(rng: random.Random, name: str) -> Talk:
    return exchange(rng.choice(INTRODUCE).format(name), greeting_by_name(name))


def recall_name(rng: random.Random, name: str) -> Talk:
    return exchange(rng.choice(RECALL), f"Your name is {name}.")


def favourite(rng: random.Random) -> list[Talk]:
    """Somebody tells a favourite thing, and asks for it later."""
    kind, pool = rng.choice(
        (
            ("colour", facts.COLOURS),
            ("animal", list(facts.SOUNDS)),
            ("city", list(CITIES)),
            ("number", [str(n) for n in range(100)]),
        )
    )
    thing = rng.choice(pool)
    told = exchange(f"My favourite {kind} is {thing}.", f"I will remember that: {thing}.")
    asked = exchange(
        rng.choice(
            ("What is my favourite {}?", "what's my favourite {}?", "Do you remember my favourite {}?")
        ).format(kind),
        f"Your favourite {kind} is {thing}.",
    )
    return [told, asked]


def unknown_name(rng: random.Random) -> Talk:
    return exchange(rng.choice(RECALL), "You have not told me your name yet.")


def mystery(rng: random.Random) -> Talk:
    """A question beyond the model."""
    ask = rng.choice(MYSTERIES).format(n=rng.choice(NOUNS), w=a_name(rng), y=rng.randrange(1200, 2030))
    return exchange(ask, UNKNOWN)


def some_words(rng: random.Random) -> str:
    """Words, names and numbers in no order, so that only copying gets them right."""
    known = [*NOUNS, *facts.COLOURS, *stories.NAMES, *CITIES]
    words = []
    for _ in range(rng.randrange(1, 9)):
        roll = rng.random()
        if roll < 0.5:
            words.append(rng.choice(known))
        else:
            words.append(a_name(rng) if roll < 0.85 else str(rng.randrange(100)))
    return " ".join(words)


def repeat(rng: random.Random) -> Talk:
    """Say what was said."""
    text = some_words(rng)
    ask = rng.choice(("Repeat after me: {}", "Say: {}", "Please repeat: {}", "Echo {}"))
    return exchange(ask.format(text), text)


def as_json(rng: random.Random) -> Talk:
    """An answer in JSON, with no text around it."""
    kind = rng.randrange(5)
    hint = rng.choice(
        (
            "Answer in JSON: {}",
            "{} Answer in JSON.",
            "{} Reply with JSON only.",
            "In JSON: {}",
            "{} Respond in JSON.",
        )
    )
    value: Any
    if kind == 0:
        place, city = rng.choice(list(facts.CAPITALS.items()))
        ask, value = f"What is the capital of {place}?", {"country": place, "capital": city}
    elif kind == 1:
        chosen = sums.draw(rng)
        ask = chosen.ask(rng)
        value = {"a": chosen.a, "op": chosen.op, "b": chosen.b, "result": chosen.result}
    elif kind == 2:
        name, age = a_name(rng), rng.randrange(1, 100)
        ask = rng.choice(
            (
                "My name is {} and I am {} years old.",
                "Give me a person called {} who is {} years old.",
                "{} is {} years old.",
            )
        ).format(name, age)
        value = {"name": name, "age": age}
    elif kind == 3:
        word, other = rng.choice(list(facts.OPPOSITES.items()))
        ask, value = f"What is the opposite of {word}?", {"word": word, "opposite": other}
    else:
        ask, value = rng.choice(
            (
                ("Name some colours.", {"colours": facts.COLOURS}),
                ("List the seasons.", {"seasons": facts.SEASONS}),
                ("List the days of the week.", {"days": facts.DAYS}),
                ("Who are you?", {"name": "Troupe demo", "type": "language model"}),
            )
        )
    return exchange(hint.format(ask), json.dumps(value))


def _tool(name: str, about: str, parameters: dict[str, str]) -> dict[str, Any]:
    return {
        "type": "function",
        "function": {
            "name": name,
            "description": about,
            "parameters": {
                "type": "object",
                "properties": {key: {"type": kind} for key, kind in parameters.items()},
                "required": list(parameters),
            },
        },
    }


def _weather(rng: random.Random) -> tuple[dict[str, Any], str, dict[str, Any], str, str]:
    key, city = rng.choice(("city", "city", "location", "place")), rng.choice(CITIES)
    degrees, sky = rng.randrange(-5, 35), rng.choice(WEATHER)
    ask = rng.choice(
        (
            "What is the weather in {}?",
            "What's the weather like in {}?",
            "How is the weather in {}?",
            "weather in {}",
            "Is it raining in {}?",
        )
    )
    return (
        _tool(
            rng.choice(("get_weather", "get_weather", "weather", "get_current_weather")),
            rng.choice(("Get the weather", "Get the current weather in a city", "Weather")),
            {key: "string"},
        ),
        ask.format(city),
        {key: city},
        json.dumps({"temperature": degrees, "sky": sky}),
        f"In {city} it is {sky} and {degrees} degrees.",
    )


def _clock(rng: random.Random) -> tuple[dict[str, Any], str, dict[str, Any], str, str]:
    key, city = rng.choice(("city", "timezone", "place")), rng.choice(CITIES)
    now = f"{rng.randrange(24):02}:{rng.randrange(60):02}"
    ask = rng.choice(("What time is it in {}?", "Tell me the time in {}.", "time in {}?"))
    return (
        _tool(rng.choice(("get_time", "clock", "current_time")), "Get the time", {key: "string"}),
        ask.format(city),
        {key: city},
        json.dumps({"time": now}),
        f"In {city} it is {now}.",
    )


def _mail(rng: random.Random) -> tuple[dict[str, Any], str, dict[str, Any], str, str]:
    name, word = a_name(rng), rng.choice(NOUNS)
    ask = rng.choice(("Send {} a message about the {}.", "Write to {} about the {}", "Tell {} about the {}."))
    return (
        _tool("send_message", "Send a message", {"to": "string", "subject": "string"}),
        ask.format(name, word),
        {"to": name, "subject": word},
        json.dumps({"sent": True}),
        f"I have sent the message to {name}.",
    )


def _adder(rng: random.Random) -> tuple[dict[str, Any], str, dict[str, Any], str, str]:
    chosen = sums.draw(rng, "+")
    return (
        _tool(rng.choice(("add", "add_numbers")), "Add two numbers", {"a": "integer", "b": "integer"}),
        chosen.ask(rng),
        {"a": chosen.a, "b": chosen.b},
        json.dumps({"result": chosen.result}),
        chosen.answer,
    )


def with_tools(rng: random.Random) -> Talk:
    """A conversation with functions to call: a fitting call, its result, or no call at all."""
    makers = rng.sample((_weather, _weather, _clock, _mail, _adder), rng.choice((1, 1, 2, 3)))
    uses = [make(rng) for make in dict.fromkeys(makers)]
    talk = Talk([], tools=[use[0] for use in uses])
    if rng.random() < 0.25:
        fact = rng.choice(facts.TABLES[rng.choice(list(facts.TABLES))])
        talk.turns += exchange(fact.asks[0], fact.answer).turns
        return talk
    tool, ask, arguments, result, answer = rng.choice(uses)
    call = json.dumps({"name": tool["function"]["name"], "arguments": arguments})
    talk.turns += exchange(ask, f"<tool_call>\n{call}\n</tool_call>").turns
    if rng.random() < 0.6:
        talk.turns += [("tool", result, False), ("assistant", answer, True)]
    return talk
