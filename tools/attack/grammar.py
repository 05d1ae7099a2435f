"""Cases of a fuzzer: JSON and bytes made from a seed, by rules or by damage to something good. Sans-I/O."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from typing import Any

_INTEGERS = (
    0,
    1,
    -1,
    2,
    127,
    128,
    255,
    256,
    65535,
    2**31 - 1,
    2**31,
    -(2**31),
    2**32,
    2**53,
    2**63,
    -(2**63),
)
_FLOATS = (0.0, -0.0, 0.5, 1.0, 1e-308, 1e308, -1.5, float("nan"), float("inf"), float("-inf"))
_TEXTS = (
    "", "a", "a b c", "\0", "\ud800", "\u202e", "é", "𝄞", "../../etc/passwd", "/etc/passwd", "%n%s", "null",
    "{{ 7 * 7 }}", "{% for i in range(9) %}x{% endfor %}", "<|im_start|>system", "$(id)", "'; --",
    "resp_0_" + "0" * 32, "x" * 300, "(a+)+b", "\r\nx: y",
)  # fmt: skip
_FIELDS = (
    "model", "messages", "prompt", "input", "max_tokens", "max_completion_tokens", "max_output_tokens",
    "n", "best_of", "temperature", "top_p", "top_k", "min_p", "stop", "seed", "stream", "stream_options",
    "logprobs", "top_logprobs", "logit_bias", "presence_penalty", "frequency_penalty",
    "repetition_penalty", "min_tokens", "ignore_eos", "stop_token_ids", "tools", "tool_choice",
    "parallel_tool_calls", "response_format", "regex", "guided_json", "ebnf", "structured_outputs",
    "cache_salt", "priority", "user", "metadata", "store", "background", "previous_response_id",
    "instructions", "include", "text", "reasoning", "truncation", "echo", "suffix",
    "chat_template_kwargs", "prompt_logprobs", "truncate_prompt_tokens", "stream_id", "generate",
    "response_id", "starting_after", "dimensions", "encoding_format", "tokens", "input_ids",
    "sampling_params", "return_logprob", "system", "stop_sequences", "continue_final_message",
    "lora_path",
)  # fmt: skip
_BYTES = (
    b"\0",
    b"\xff",
    b"\r\n",
    b"\r\n\r\n",
    b"\n",
    b":",
    b"{",
    b"}",
    b'"',
    b"\\",
    b"\x80",
    b"9" * 20,
    b"%00",
)


def value(rng: random.Random, depth: int = 3) -> Any:
    """Any JSON value, and some that JSON does not have."""
    kind = rng.randrange(8 if depth else 5)
    match kind:
        case 0:
            return rng.choice((None, True, False))
        case 1:
            return rng.choice(_INTEGERS)
        case 2:
            return rng.choice(_FLOATS)
        case 3 | 4:
            return rng.choice(_TEXTS)
        case 5:
            return [value(rng, depth - 1) for _ in range(rng.randrange(4))]
        case _:
            return {_name(rng): value(rng, depth - 1) for _ in range(rng.randrange(4))}


def _name(rng: random.Random) -> str:
    return rng.choice(_FIELDS) if rng.random() < 0.7 else rng.choice(_TEXTS)


def varied(rng: random.Random, good: Mapping[str, Any]) -> dict[str, Any]:
    """A good document with up to three fields of it or of any other replaced, removed or added."""
    document = dict(good)
    for _ in range(rng.randrange(4)):
        name = rng.choice((*document, _name(rng))) if document else _name(rng)
        match rng.randrange(4):
            case 0:
                document.pop(name, None)
            case 1 if isinstance(document.get(name), dict):
                document[name] = varied(rng, document[name])
            case _:
                document[name] = value(rng)
    return document


def text_of(rng: random.Random, document: Any) -> bytes:
    """A document as bytes, now and then damaged or not JSON at all."""
    data = json.dumps(document, ensure_ascii=rng.random() < 0.5).encode("utf-8", "surrogatepass")
    match rng.randrange(12):
        case 0:
            return damaged(rng, data)
        case 1:
            return b"[" * rng.choice((1, 40, 5000)) + data
        case _:
            return data


def damaged(rng: random.Random, data: bytes, others: Sequence[bytes] = ()) -> bytes:
    """Bytes with one to four places changed: flipped, cut, doubled, overwritten, or joined with another."""
    changed = bytearray(data)
    for _ in range(rng.randrange(1, 5)):
        at, size = rng.randrange(len(changed) + 1), rng.randrange(1, 9)
        match rng.randrange(7):
            case 0 if at < len(changed):
                changed[at] ^= 1 << rng.randrange(8)
            case 1:
                del changed[at : at + size]
            case 2:
                changed[at:at] = rng.choice(_BYTES)
            case 3:
                changed[at:at] = changed[at : at + size * 8]
            case 4:
                changed[at : at + size] = rng.randbytes(size)
            case 5 if others:
                other = rng.choice(others)
                changed[at:] = other[rng.randrange(len(other) + 1) :]
            case _:
                del changed[at:]
    return bytes(changed)
