"""What the clients ask: a seeded mix of everything that shapes a stream."""

from __future__ import annotations

import random
from typing import Any

_WORDS = "the a red blue small old river house sum name count story list of and with over under".split()
_QUESTIONS = (
    "Count from 1 to 20",
    "Tell me a story",
    "What is 12 + 30?",
    "List the days of the week",
    "Say the alphabet",
    "What is the capital of France?",
)


def responses(model: str, count: int, tokens: int, seed: int) -> list[dict[str, Any]]:
    """Bodies for `/v1/responses`: sampled and greedy, long and short."""
    rng = random.Random(seed)
    return [_response(model, tokens, rng) for _ in range(count)]


def _response(model: str, tokens: int, rng: random.Random) -> dict[str, Any]:
    words = " ".join(rng.choices(_WORDS, k=rng.randrange(3, 60)))
    body = {
        "model": model,
        "input": f"{rng.choice(_QUESTIONS)} {words}",
        "max_output_tokens": rng.randrange(tokens // 2, tokens + 1),
        "seed": rng.getrandbits(31),
        "ignore_eos": True,
        "stream": True,
    }
    return body | rng.choice(_SHAPES)


_SHAPES: tuple[dict[str, Any], ...] = (
    {"temperature": 0},
    {"temperature": 0.8},
    {"temperature": 1.0, "top_p": 0.9},
    {"temperature": 1.2, "top_k": 20},
    {"temperature": 0.9, "min_p": 0.05},
)


def chats(model: str, count: int, tokens: int, seed: int) -> list[dict[str, Any]]:
    """Bodies for `/v1/chat/completions`: stop strings, penalties, choices, logprobs, minimum lengths."""
    rng = random.Random(seed)
    return [_chat(model, tokens, rng) for _ in range(count)]


def _chat(model: str, tokens: int, rng: random.Random) -> dict[str, Any]:
    words = " ".join(rng.choices(_WORDS, k=rng.randrange(0, 20)))
    body = {
        "model": model,
        "messages": [{"role": "user", "content": f"{rng.choice(_QUESTIONS)} {words}"}],
        "max_tokens": rng.randrange(tokens // 2, tokens + 1),
        "seed": rng.getrandbits(31),
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    return body | rng.choice(_SHAPES) | rng.choice(_CHAT_SHAPES)


_CHAT_SHAPES: tuple[dict[str, Any], ...] = (
    {"ignore_eos": True},
    {"stop": ["er", "11", "\n"]},
    {"n": 2, "ignore_eos": True},
    {"presence_penalty": 0.7, "frequency_penalty": 0.4, "ignore_eos": True},
    {"repetition_penalty": 1.2, "ignore_eos": True},
    {"logprobs": True, "top_logprobs": 2, "ignore_eos": True},
    {"min_tokens": 12},
)
