"""A small grammar of stories, and other long answers: counting and lists."""

import random

HEROES = (
    "fox",
    "cat",
    "dog",
    "robot",
    "dragon",
    "mouse",
    "bear",
    "girl",
    "boy",
    "knight",
    "wizard",
    "bird",
    "rabbit",
    "turtle",
    "pirate",
    "princess",
    "owl",
    "frog",
)
NAMES = (
    "Ada Alan Grace Linus Tim Anna Ben Clara David Emma Frank Hannah Ivan Julia Karl Laura Max Nina "
    "Oscar Paul Rosa Sam Tom Vera Will Zoe Bob Alice Eve Mia Leo Luna John Mary Peter Sara"
).split()
PLACES = (
    "a small village",
    "a dark forest",
    "a castle on a hill",
    "a house by the sea",
    "a busy city",
    "a green valley",
    "a cave in the mountains",
    "a theatre in an old town",
)
TREASURES = (
    "a golden key",
    "a red balloon",
    "the lost crown",
    "a magic book",
    "a silver bell",
    "the highest mountain",
    "a friend",
    "a blue flower",
)
TROUBLES = (
    "But a wide river was in the way.",
    "But a heavy storm came over the hills.",
    "But the path was dark and very long.",
    "But an angry giant stood at the gate.",
    "But the bridge was broken.",
)
WAYS_OUT = (
    "built a small boat and crossed the water",
    "waited until the sun came back",
    "lit a lamp and walked on without fear",
    "told the giant a joke, and the giant laughed and let them pass",
    "found another way under the old trees",
)
ENDINGS = (
    "They went home together and had a big dinner.",
    "From that day on they were the best of friends.",
    "And everybody in the land heard about it.",
    "That night they slept under the stars, tired and happy.",
)
OPENINGS = ("Once upon a time", "A long time ago", "Many years ago")
STORY_ASKS = (
    "Tell me a story.",
    "Tell me a story",
    "Please tell me a story.",
    "Can you tell me a story?",
    "I want to hear a story.",
    "Write a short story.",
    "tell me a tale",
)
ABOUT_ASKS = (
    "Tell me a story about a {}.",
    "Write a story about a {}",
    "Can you tell a story about a {}?",
    "A story about a {}, please.",
    "Tell me a long story about a {}.",
)


def story(rng: random.Random) -> tuple[str, str]:
    """A question for a story (perhaps about somebody) and a story of about ten sentences."""
    hero = rng.choice(HEROES)
    ask = rng.choice(STORY_ASKS) if rng.random() < 0.5 else rng.choice(ABOUT_ASKS).format(hero)
    return ask, tell(rng, hero)


def tell(rng: random.Random, hero: str) -> str:
    """The story itself."""
    name, friend = rng.sample(NAMES, 2)
    helper = rng.choice([h for h in HEROES if h != hero])
    treasure, trouble = rng.choice(TREASURES), rng.randrange(len(TROUBLES))
    way = WAYS_OUT[trouble]
    return " ".join(
        (
            f"{rng.choice(OPENINGS)} there was a {hero} called {name}.",
            f"{name} lived in {rng.choice(PLACES)}.",
            f"Every day {name} dreamed of finding {treasure}.",
            f"One morning {name} left home to look for it.",
            f"On the way {name} met a {helper} called {friend}.",
            f'"Where are you going?" asked {friend}.',
            f'"I am looking for {treasure}," said {name}.',
            f'"Then I will come with you," said {friend}.',
            TROUBLES[trouble],
            f"{name} and {friend} {way}.",
            f"In the end they found {treasure}.",
            rng.choice(ENDINGS),
        )
    )


def count(rng: random.Random) -> tuple[str, str]:
    """Counting up or down between two numbers, mostly from 1."""
    first = 1 if rng.random() < 0.4 else rng.randrange(60)
    last = first + rng.choice((4, 9, 9, 19, 19, rng.randrange(3, 40)))
    if rng.random() < 0.2:
        ask = rng.choice(("Count down from {} to {}.", "Count backwards from {} to {}"))
        numbers = range(last, first - 1, -1)
    elif first == 1 and rng.random() < 0.3:
        ask = rng.choice(("Count to {1}.", "count to {1}", "Please count to {1}."))
        numbers = range(first, last + 1)
    else:
        ask = rng.choice(
            (
                "Count from {} to {}.",
                "count from {} to {}",
                "Count from {} up to {}",
                "Please count from {} to {}.",
                "Can you count from {} to {}?",
            )
        )
        numbers = range(first, last + 1)
    return ask.format(numbers[0], numbers[-1]), ", ".join(map(str, numbers))
