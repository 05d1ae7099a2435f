"""The few things the demo model knows: tables of facts and the ways to ask for them.

`FIXED` pairs phrasings with one answer; the tables (capitals, opposites, sounds, ...) expand through
`TABLES` into the same shape. Every question has exactly one answer, so that greedy decoding can be
checked word for word.
"""

from dataclasses import dataclass

NAME = "I am Troupe's demo model, a very small language model."

DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
MONTHS = ("January February March April May June July August September October November December").split()
PLANETS = "Mercury Venus Earth Mars Jupiter Saturn Uranus Neptune".split()
COLOURS = "red orange yellow green blue purple pink brown black white".split()
SEASONS = "spring summer autumn winter".split()

CAPITALS = {
    "France": "Paris",
    "Germany": "Berlin",
    "Italy": "Rome",
    "Spain": "Madrid",
    "Portugal": "Lisbon",
    "England": "London",
    "Scotland": "Edinburgh",
    "Ireland": "Dublin",
    "Japan": "Tokyo",
    "China": "Beijing",
    "India": "New Delhi",
    "Russia": "Moscow",
    "Greece": "Athens",
    "Egypt": "Cairo",
    "Kenya": "Nairobi",
    "Canada": "Ottawa",
    "Australia": "Canberra",
    "Brazil": "Brasilia",
    "Argentina": "Buenos Aires",
    "Norway": "Oslo",
    "Sweden": "Stockholm",
    "Finland": "Helsinki",
    "Denmark": "Copenhagen",
    "Poland": "Warsaw",
    "Austria": "Vienna",
    "Hungary": "Budapest",
    "Belgium": "Brussels",
    "Turkey": "Ankara",
    "Peru": "Lima",
    "Cuba": "Havana",
    "the Netherlands": "Amsterdam",
    "the United States": "Washington",
}

OPPOSITES = {
    "hot": "cold",
    "big": "small",
    "up": "down",
    "left": "right",
    "open": "closed",
    "day": "night",
    "good": "bad",
    "fast": "slow",
    "happy": "sad",
    "young": "old",
    "wet": "dry",
    "full": "empty",
    "light": "dark",
    "loud": "quiet",
    "hard": "soft",
    "high": "low",
    "long": "short",
    "rich": "poor",
    "early": "late",
    "true": "false",
    "black": "white",
    "in": "out",
    "yes": "no",
    "strong": "weak",
}

SOUNDS = {
    "dog": "woof",
    "cat": "meow",
    "cow": "moo",
    "duck": "quack",
    "sheep": "baa",
    "pig": "oink",
    "horse": "neigh",
    "lion": "roar",
    "owl": "hoot",
    "frog": "ribbit",
}

COLOUR_OF = {
    "the sky": "blue",
    "grass": "green",
    "snow": "white",
    "a banana": "yellow",
    "a lemon": "yellow",
    "blood": "red",
    "a tomato": "red",
    "coal": "black",
    "the sea": "blue",
    "a carrot": "orange",
    "chocolate": "brown",
    "the sun": "yellow",
}

COUNTS = {
    "days are in a week": "There are seven days in a week.",
    "months are in a year": "There are twelve months in a year.",
    "hours are in a day": "There are twenty-four hours in a day.",
    "minutes are in an hour": "There are sixty minutes in an hour.",
    "seconds are in a minute": "There are sixty seconds in a minute.",
    "legs does a dog have": "A dog has four legs.",
    "legs does a spider have": "A spider has eight legs.",
    "legs does an insect have": "An insect has six legs.",
    "sides does a triangle have": "A triangle has three sides.",
    "sides does a square have": "A square has four sides.",
    "wheels does a bicycle have": "A bicycle has two wheels.",
    "letters are in the alphabet": "There are twenty-six letters in the alphabet.",
    "planets are there": "There are eight planets.",
    "seasons are there": "There are four seasons.",
    "bits are in a byte": "There are eight bits in a byte.",
}


@dataclass(frozen=True)
class Fact:
    """Ways to ask one thing, the plainest first, and the one answer."""

    asks: tuple[str, ...]
    answer: str


def _listing(items: list[str]) -> str:
    return ", ".join(items[:-1]) + " and " + items[-1]


FIXED: tuple[Fact, ...] = (
    Fact(
        (
            "Hello!",
            "Hello",
            "Hi",
            "Hi!",
            "Hey",
            "hello there",
            "Hi there!",
            "Good morning!",
            "Good evening",
            "Greetings",
        ),
        "Hello! How can I help you?",
    ),
    Fact(
        ("How are you?", "How are you doing?", "How do you do?", "How is it going?", "What's up?"),
        "I am fine, thank you. How can I help you?",
    ),
    Fact(
        (
            "Who are you?",
            "What are you?",
            "What is your name?",
            "Tell me about yourself.",
            "Introduce yourself.",
            "Are you a language model?",
            "What's your name?",
            "Please introduce yourself",
        ),
        f"{NAME} I can do small sums, answer simple questions and tell stories.",
    ),
    Fact(
        ("What can you do?", "How can you help me?", "Help", "What do you know?", "What are you good at?"),
        "I can do small sums, answer simple questions, count, tell stories and write a little Python.",
    ),
    Fact(
        ("Who made you?", "Who created you?", "Who trained you?", "Where do you come from?"),
        "I was trained from scratch by the makers of Troupe, on a plain computer without a GPU.",
    ),
    Fact(("Thank you!", "Thanks", "Thank you very much.", "thanks a lot", "Thx"), "You are welcome!"),
    Fact(
        ("Goodbye!", "Bye", "Bye bye", "See you later", "Good night", "Good bye."),
        "Goodbye! Have a nice day.",
    ),
    Fact(
        ("What is Troupe?", "Tell me about Troupe.", "What does Troupe do?", "Explain Troupe"),
        "Troupe is a server for large language models. It is a company of actors, and every actor "
        "is a process with one job.",
    ),
    Fact(
        (
            "What is Python?",
            "Tell me about Python.",
            "Explain Python.",
            "What's Python?",
            "Describe the Python language",
        ),
        "Python is a programming language. It is easy to read, it is used all over the world, and "
        "its standard library comes with batteries included.",
    ),
    Fact(
        ("What is a list in Python?", "What is a Python list?", "Explain lists in Python"),
        "A list is an ordered collection of items that can be changed, such as [1, 2, 3].",
    ),
    Fact(
        ("What is a dictionary in Python?", "What is a dict?", "Explain dictionaries in Python"),
        'A dictionary maps keys to values, such as {"one": 1, "two": 2}.',
    ),
    Fact(
        ("What is a GPU?", "What's a GPU?", "Explain what a GPU is."),
        "A GPU is a processor that does many small calculations at the same time.",
    ),
    Fact(
        ("What is a language model?", "Explain what a language model is.", "What is an LLM?"),
        "A language model is a program that has learnt to guess the next word of a text.",
    ),
    Fact(
        ("What is an actor?", "Explain actors.", "What is an actor in Troupe?"),
        "An actor is a process with one job and one inbox. Actors talk by sending messages.",
    ),
    Fact(
        ("What is water?", "What is water made of?", "What's water?"), "Water is made of hydrogen and oxygen."
    ),
    Fact(
        ("What is the largest planet?", "Which planet is the biggest?", "Name the biggest planet"),
        "Jupiter is the largest planet.",
    ),
    Fact(
        ("What is the largest ocean?", "Which ocean is the biggest?", "Name the largest ocean."),
        "The Pacific is the largest ocean.",
    ),
    Fact(
        ("What is the highest mountain?", "Which mountain is the highest?", "Name the tallest mountain."),
        "Mount Everest is the highest mountain.",
    ),
    Fact(
        ("Who wrote Hamlet?", "Who is the author of Hamlet?", "Which writer wrote Hamlet?"),
        "William Shakespeare wrote Hamlet.",
    ),
    Fact(
        ("Who invented Python?", "Who created Python?", "Who made Python?"),
        "Guido van Rossum created Python.",
    ),
    Fact(
        ("Tell me a joke.", "Do you know a joke?", "Make me laugh", "Joke please"),
        "Why did the programmer wear glasses? Because he could not C.",
    ),
    Fact(
        (
            "List the days of the week.",
            "What are the days of the week?",
            "Name the days of the week",
            "Tell me the days of the week.",
        ),
        f"The days of the week are {_listing(DAYS)}.",
    ),
    Fact(
        (
            "List the months of the year.",
            "What are the months of the year?",
            "Name the months",
            "Tell me the months of the year.",
        ),
        f"The months of the year are {_listing(MONTHS)}.",
    ),
    Fact(
        ("List the planets.", "What are the planets?", "Name the planets", "Name all the planets."),
        f"The planets are {_listing(PLANETS)}.",
    ),
    Fact(
        ("List the seasons.", "What are the four seasons?", "Name the seasons"),
        f"The seasons are {_listing(SEASONS)}.",
    ),
    Fact(
        (
            "Name some colours.",
            "List some colors.",
            "Name some colors",
            "List the colours.",
            "Tell me some colours",
        ),
        f"Some colours are {_listing(COLOURS)}.",
    ),
    Fact(
        (
            "Say the alphabet.",
            "Recite the alphabet",
            "What is the alphabet?",
            "List the alphabet.",
            "Write the alphabet",
        ),
        " ".join("ABCDEFGHIJKLMNOPQRSTUVWXYZ"),
    ),
    Fact(
        (
            "Write a Python function that adds two numbers.",
            "Write a function to add two numbers.",
            "Show me a Python function that adds two numbers",
            "Write an add function in Python",
        ),
        '```python\ndef add(a, b):\n    """Return the sum of a and b."""\n    return a + b\n```',
    ),
    Fact(
        (
            "Write hello world in Python.",
            "Show me hello world.",
            "Print hello world in Python",
            "How do I print hello world in Python?",
        ),
        '```python\nprint("Hello, world!")\n```',
    ),
    Fact(
        ("Write FizzBuzz in Python.", "Show me FizzBuzz", "Write a FizzBuzz program."),
        '```python\nfor i in range(1, 101):\n    if i % 15 == 0:\n        print("FizzBuzz")\n'
        '    elif i % 3 == 0:\n        print("Fizz")\n    elif i % 5 == 0:\n'
        '        print("Buzz")\n    else:\n        print(i)\n```',
    ),
    Fact(
        (
            "Write a Python function for factorial.",
            "Write a factorial function.",
            "Show me a factorial function in Python",
        ),
        '```python\ndef factorial(n):\n    """Return n! for n >= 0."""\n    result = 1\n'
        "    for i in range(2, n + 1):\n        result *= i\n    return result\n```",
    ),
    Fact(
        ("How do I make tea?", "How do you make tea?", "Tell me how to make tea."),
        "1. Boil some water.\n2. Put a tea bag in a cup.\n3. Pour the water into the cup.\n"
        "4. Wait for three minutes.\n5. Take the tea bag out and enjoy your tea.",
    ),
    Fact(
        ("Write a poem.", "Write me a poem.", "Recite a poem", "Can you write a poem?"),
        "The curtain lifts, the actors bow,\nthe messages are flowing now.\n"
        "And if one falls, the play goes on:\nanother stands where it has gone.",
    ),
)


def _capital(place: str, city: str) -> Fact:
    return Fact(
        (
            f"What is the capital of {place}?",
            f"what's the capital of {place}",
            f"Capital of {place}?",
            f"Which city is the capital of {place}?",
            f"Tell me the capital of {place}.",
            f"Name the capital of {place}.",
        ),
        f"The capital of {place} is {city}.",
    )


def _country(place: str, city: str) -> Fact:
    return Fact(
        (
            f"Which country has the capital {city}?",
            f"{city} is the capital of which country?",
            f"What country is {city} the capital of?",
        ),
        f"{city} is the capital of {place}.",
    )


def _opposite(word: str, other: str) -> Fact:
    return Fact(
        (
            f"What is the opposite of {word}?",
            f"opposite of {word}",
            f"The opposite of {word}?",
            f"Tell me the opposite of {word}.",
        ),
        f"The opposite of {word} is {other}.",
    )


def _sound(animal: str, sound: str) -> Fact:
    return Fact(
        (
            f"What sound does a {animal} make?",
            f"What does a {animal} say?",
            f"Which sound does a {animal} make",
        ),
        f"A {animal} says {sound}.",
    )


def _colour(thing: str, colour: str) -> Fact:
    return Fact(
        (
            f"What colour is {thing}?",
            f"What color is {thing}?",
            f"Which colour is {thing}",
            f"Tell me the colour of {thing}.",
        ),
        f"{thing[0].upper()}{thing[1:]} is {colour}.",
    )


def _count(tail: str, answer: str) -> Fact:
    return Fact((f"How many {tail}?", f"how many {tail}", f"Tell me how many {tail}."), answer)


def _neighbours(items: list[str], kind: str) -> list[Fact]:
    facts = []
    for here, following in zip(items, items[1:] + items[:1], strict=True):
        facts.append(
            Fact(
                (
                    f"What {kind} comes after {here}?",
                    f"Which {kind} follows {here}?",
                    f"What comes after {here}?",
                ),
                f"{following} comes after {here}.",
            )
        )
        facts.append(
            Fact(
                (
                    f"What {kind} comes before {following}?",
                    f"Which {kind} is before {following}?",
                    f"What comes before {following}?",
                ),
                f"{here} comes before {following}.",
            )
        )
    return facts


TABLES: dict[str, tuple[Fact, ...]] = {
    "fixed": FIXED,
    "capitals": tuple(_capital(p, c) for p, c in CAPITALS.items()),
    "countries": tuple(_country(p, c) for p, c in CAPITALS.items()),
    "opposites": tuple(
        _opposite(*pair) for pair in [*OPPOSITES.items(), *((b, a) for a, b in OPPOSITES.items())]
    ),
    "sounds": tuple(_sound(a, s) for a, s in SOUNDS.items()),
    "colours": tuple(_colour(t, c) for t, c in COLOUR_OF.items()),
    "counts": tuple(_count(t, a) for t, a in COUNTS.items()),
    "days": tuple(_neighbours(DAYS, "day")),
    "months": tuple(_neighbours(MONTHS, "month")),
}
