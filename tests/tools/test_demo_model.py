"""The demo model in the repository: its size, its chat template, its sums and its answers."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer

from tools.demo import corpus, dialogues, sums
from tools.demo.examine import Pupil, question_accuracy, sum_accuracy

FOLDER = Path(__file__).parents[2] / "tools" / "demo" / "model"
SAMPLE = 150
WRITTEN_SUM = re.compile(r"\b(\d+) ([+-]) (\d+) =")


@pytest.fixture(scope="module")
def pupil() -> Iterator[Pupil]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield Pupil(FOLDER)
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(FOLDER / "tokenizer.json"))


def template(trim: bool) -> Any:
    text = json.loads((FOLDER / "tokenizer_config.json").read_text())["chat_template"]
    environment = ImmutableSandboxedEnvironment(trim_blocks=trim, lstrip_blocks=trim)
    environment.filters["tojson"] = json.dumps
    return environment.from_string(text)


def test_the_directory_is_small() -> None:
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) <= 12_000_000


@pytest.mark.parametrize(("sign", "floor"), [("+", 0.97), ("-", 0.97), ("x", 0.98)])
def test_sums_that_were_held_out(pupil: Pupil, sign: sums.Op, floor: float) -> None:
    share, wrong = sum_accuracy(pupil, sign, SAMPLE)
    assert share >= floor, wrong


def test_questions_and_follow_ups(pupil: Pupil) -> None:
    share, wrong = question_accuracy(pupil)
    assert share >= 0.97, wrong


def test_a_function_is_called_and_its_result_told(pupil: Pupil) -> None:
    function = {
        "name": "get_weather",
        "description": "Get the current weather in a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    }
    messages = [{"role": "user", "content": "What is the weather in Paris?"}]
    call = '{"name": "get_weather", "arguments": {"city": "Paris"}}'
    for reply, answer in (
        (None, f"<tool_call>\n{call}\n</tool_call>"),
        ('{"temperature": 18, "sky": "sunny"}', "In Paris it is sunny and 18 degrees."),
    ):
        if reply:
            messages.append({"role": "tool", "content": reply})
        prompt = template(trim=True).render(messages=messages, tools=[function], add_generation_prompt=True)
        assert pupil.complete([prompt], 60) == [answer]
        messages.append({"role": "assistant", "content": answer})


def test_python_text_goes_on_as_python(pupil: Pupil) -> None:
    (text,) = pupil.complete(["class Point:\n    def __init__(self, x, y):\n        self.x ="], 24)
    assert "self." in text


@pytest.mark.parametrize("text", ["", "12 + 30", "  x\n\ty\r\n", "naïve – 日本語 🎭", "<|im_end|>"])
def test_any_text_comes_back(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    assert tokenizer.decode(ids, skip_special_tokens=False) == text


def test_digits_are_tokens_of_their_own(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode("a 123").tokens[-3:] == ["1", "2", "3"]


def test_no_training_text_holds_a_held_out_sum() -> None:
    rng = random.Random(1)
    makers = (corpus.conversation, corpus.exercise_sheet, corpus.long_conversation)
    texts = ["".join(text for text, _ in rng.choice(makers)(rng)) for _ in range(600)]
    written = [match.groups() for text in texts for match in WRITTEN_SUM.finditer(text)]
    assert len(written) > 2000
    leaked = [w for w in written if sums.Sum(int(w[0]), "+" if w[1] == "+" else "-", int(w[2])).held_out]
    assert leaked == []


def test_a_tenth_of_the_sums_is_held_out_in_both_orders() -> None:
    every = [sums.Sum(a, "+", b) for a in range(100) for b in range(100)]
    assert 0.08 < sum(s.held_out for s in every) / len(every) < 0.12
    assert all(s.held_out == sums.Sum(s.b, "+", s.a).held_out for s in every)


def test_training_talks_look_as_the_template_writes_them() -> None:
    rng, written = random.Random(2), template(trim=True)
    for _ in range(200):
        talk = dialogues.conversation(rng)
        messages = [{"role": role, "content": content} for role, content, _ in talk.turns]
        if talk.system:
            messages.insert(0, {"role": "system", "content": talk.system})
        rendered = written.render(messages=messages, tools=talk.tools)
        assert rendered == "".join(text for text, _ in corpus.render(talk))


def test_template_roles_tools_and_oddities() -> None:
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
    request = {
        "messages": [
            {"role": "developer", "content": [{"type": "text", "text": "Be "}, {"text": "kind."}]},
            {"role": "user", "content": "Hi", "name": "ada", "mood": "odd"},
            {"role": "critic", "content": "unheard"},
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "1", "content": "2"},
        ],
        "tools": [{"type": "function", "function": {"name": "f"}}],
        "add_generation_prompt": True,
        "documents": [],
    }
    rendered = template(trim=True).render(**request)
    assert rendered == template(trim=False).render(**request)
    assert rendered == (
        '<|im_start|>system\nBe kind.\n\nYou may call these functions:\n<tools>\n{"name": "f"}\n</tools>\n'
        'To call one, answer with <tool_call>\n{"name": ..., "arguments": {...}}\n</tool_call><|im_end|>\n'
        "<|im_start|>user\nHi<|im_end|>\n"
        '<|im_start|>assistant\n<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call><|im_end|>\n'
        "<|im_start|>tool\n2<|im_end|>\n<|im_start|>assistant\n"
    )
