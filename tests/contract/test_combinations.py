"""Shapes, tags and calls together with thoughts, guesses, adapters and the rest, on one company."""

from __future__ import annotations

import json
import re
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
import pytest

from tests.serving import Company, serving
from tools.actorctl.serve import DEMO_MODEL

PIRATE = DEMO_MODEL.parent / "pirate"
NUMBERS = "[0-9]{2}(, [0-9]{2}){3,9}"
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"x": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["x"],
    "additionalProperties": False,
}
CONTENT = {"type": "json_schema", "json_schema": SCHEMA}
TAGS: dict[str, Any] = {
    "type": "structural_tag",
    "structures": [{"begin": "<call=f>", "schema": SCHEMA, "end": "</call>"}],
    "triggers": ["<call="],
}


@pytest.fixture(scope="module")
def company() -> Iterator[Company]:
    options = ("--dtype", "float32", "--speculate", "ngram", "--reasoning-parser", "think")
    with serving(*options, "--lora", f"pirate={PIRATE}") as running:
        yield running


@pytest.fixture(scope="module")
def client(company: Company) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=company.url, api_key="none", max_retries=0) as made:
        yield made


def vocabulary() -> dict[str, int]:
    found: dict[str, int] = json.loads((DEMO_MODEL / "tokenizer.json").read_text())["model"]["vocab"]
    return found


def token(text: str) -> int:
    return vocabulary()[text]


def no_thought() -> dict[str, float]:
    """A bias that keeps the demo model, which never learned to end a thought, from beginning one."""
    return {str(number): -100.0 for text, number in vocabulary().items() if "<think>".startswith(text)}


def post(company: Company, path: str, body: dict[str, Any]) -> Any:
    url = f"http://{company.host}:{company.port}{path}"
    request = urllib.request.Request(url, json.dumps(body).encode(), {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=100) as answer:
        return json.loads(answer.read())


def asked(client: openai.OpenAI, model: str, extra: dict[str, Any], **fields: Any) -> Any:
    """Two answers each, whose every token is told of."""
    given: dict[str, Any] = {"n": 2, "seed": 5, "temperature": 0.8, "max_tokens": 200, "logprobs": True}
    given["messages"] = [{"role": "user", "content": "Tell me numbers"}]
    return client.chat.completions.create(model=model, extra_body=extra, **{**given, **fields})


def told(answer: Any) -> list[tuple[str, str, int]]:
    return [
        (choice.message.content or "", choice.finish_reason, len(choice.logprobs.content))
        for choice in answer.choices
    ]


@pytest.mark.parametrize("model", ["", "pirate"])
def test_a_shape_with_everything(client: openai.OpenAI, company: Company, model: str) -> None:
    model = model or company.model
    bias = {"logit_bias": no_thought()}
    whole = told(asked(client, model, {"regex": NUMBERS}, **bias))
    assert all(re.fullmatch(NUMBERS, text) and finish == "stop" for text, finish, _ in whole)
    assert told(asked(client, model, {"regex": NUMBERS}, **bias)) == whole
    cut = told(asked(client, model, {"regex": NUMBERS}, stop=", ", **bias))
    assert [text for text, _, _ in cut] == [text.split(", ")[0] for text, _, _ in whole]
    longer = told(asked(client, model, {"regex": NUMBERS, "min_tokens": 40}, **bias))
    assert all(re.fullmatch(NUMBERS, text) for text, _, _ in longer)
    assert all(count >= 20 for _, _, count in longer), "ten numbers, as no more are allowed"
    bar = {"stop_token_ids": [token("|")], "ignore_eos": True}
    ended = told(asked(client, model, {"regex": NUMBERS, **bar}, **bias))
    assert all(re.fullmatch(NUMBERS, text) and finish == "stop" for text, finish, _ in ended)


def test_guesses_beside_shapes_change_nothing(client: openai.OpenAI, company: Company) -> None:
    """Rows that are guessed for, beside rows that are held to a grammar, each as alone."""
    repeated: Any = [{"role": "user", "content": "one two three four " * 12}]

    def run(index: int) -> list[tuple[str, str, int]]:
        if index % 2:
            free = {"messages": repeated, "temperature": 0, "max_tokens": 60, "n": 1}
            return told(asked(client, company.model, {}, **free))
        return told(asked(client, company.model, {"regex": NUMBERS}, seed=index, logit_bias=no_thought()))

    alone = [run(index) for index in range(4)]
    with ThreadPoolExecutor(12) as crowd:
        assert list(crowd.map(run, list(range(4)) * 3)) == alone * 3


def test_a_thought_goes_before_a_shape(client: openai.OpenAI, company: Company) -> None:
    """Amid a thought everything is free, and nothing may end before the text behind it has its shape."""
    begun: Any = [{"role": "user", "content": "Think"}, {"role": "assistant", "content": "<think>"}]
    extra = {"regex": NUMBERS, "continue_final_message": True}
    answer = asked(client, company.model, extra, messages=begun, max_tokens=60)
    for choice in answer.choices:
        assert choice.finish_reason == "length" and choice.message.reasoning_content
        assert not choice.message.content and len(choice.logprobs.content) == 60
    ended: Any = [*begun[:1], {"role": "assistant", "content": "<think>so</think>"}]
    answer = asked(client, company.model, extra, messages=ended, logit_bias=no_thought())
    assert all(re.fullmatch(NUMBERS, text) for text, _, _ in told(answer))


def test_tags_in_every_endpoint(client: openai.OpenAI, company: Company) -> None:
    call = {"type": "tag", "begin": "<call=f>", "content": CONTENT, "end": "</call>"}
    in_order = {"type": "sequence", "elements": [{"type": "const_string", "value": "So: "}, call]}
    begin: Any = {"type": "structural_tag", "format": in_order}
    pattern = r"So: <call=f>(\{.*\})</call>"

    def check(text: str) -> None:
        match = re.fullmatch(pattern, text, re.DOTALL)
        assert match is not None and set(json.loads(match[1])) == {"x"}, text

    answer = asked(client, company.model, {}, response_format=begin, logit_bias=no_thought())
    for text, finish, _ in told(answer):
        assert finish == "stop"
        check(text)
    completion = client.completions.create(
        model=company.model,
        prompt="The call: ",
        max_tokens=200,
        extra_body={"structured_outputs": {"structural_tag": json.dumps(begin)}},
    )
    check(completion.choices[0].text)
    sampling = {"structural_tag": json.dumps(begin), "max_new_tokens": 200}
    check(post(company, "/generate", {"text": "The call: ", "sampling_params": sampling})["text"])
    free = told(asked(client, company.model, {"structural_tag": TAGS}, max_tokens=30))
    assert all("<call=" not in text or "<call=f>" in text for text, _, _ in free)
    with pytest.raises(openai.BadRequestError) as caught:
        asked(client, company.model, {"structural_tag": {"structures": [], "triggers": ["<"]}})
    assert caught.value.param == "structural_tag"


def test_an_ambiguous_grammar_ends_alone(client: openai.OpenAI, company: Company) -> None:
    """One is refused at once, another when its text can be read in too many ways; others go on."""
    rules = "\n".join(f'r{i}: s "a" | "a" | s s' for i in range(60))
    many = f'start: s\ns: {" | ".join(f"r{i} s" for i in range(60))} | "a"\n{rules}'
    with pytest.raises(openai.BadRequestError, match="too ambiguous"):
        asked(client, company.model, {"guided_grammar": many})
    late = 'start: "prefix " /[0-9]{30}/ s\ns: s s s | s s | "a" | "b"'
    with ThreadPoolExecutor(2) as crowd:
        beside = crowd.submit(asked, client, company.model, {"regex": NUMBERS}, logit_bias=no_thought())
        with pytest.raises(openai.BadRequestError, match="could not be held to its grammar") as caught:
            extra = {"guided_grammar": late, "min_tokens": 300}
            asked(client, company.model, extra, max_tokens=400, logit_bias=no_thought())
        assert caught.value.code == "grammar_not_kept"
        assert all(re.fullmatch(NUMBERS, text) for text, _, _ in told(beside.result()))
    assert company.actor("executor.0")["restarts"] == 0
