"""Structured output and tools with the unmodified openai client, against the demo model."""

from __future__ import annotations

import enum
import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

import openai
import pydantic
import pytest

from tests.serving import Company, serving

WEATHER: dict[str, Any] = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "enum": ["Paris", "Oslo", "Lima"]},
        "days": {"type": "integer", "minimum": 1, "maximum": 9},
    },
    "required": ["city", "days"],
    "additionalProperties": False,
}
TOOL: Any = {"type": "function", "function": {"name": "get_weather", "parameters": WEATHER, "strict": True}}
FLAT_TOOL: Any = {"type": "function", "name": "get_weather", "parameters": WEATHER, "strict": True}


class Colour(enum.StrEnum):
    RED = "red"
    BLUE = "blue"


class Step(pydantic.BaseModel):
    colour: Colour
    size: Literal[1, 2, 3]


class Plan(pydantic.BaseModel):
    title: str = pydantic.Field(max_length=24)
    steps: list[Step] = pydantic.Field(min_length=1, max_length=3)
    note: str | None = pydantic.Field(max_length=8)


class GetWeather(pydantic.BaseModel):
    """The weather of a city."""

    city: Literal["Paris", "Oslo"]
    days: int = pydantic.Field(ge=1, le=9)


@pytest.fixture(scope="module")
def company() -> Iterator[Company]:
    with serving("--dtype", "float32") as running:
        yield running


@pytest.fixture(scope="module")
def client(company: Company) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=company.url, api_key="none", max_retries=0) as made:
        yield made


def ask(client: openai.OpenAI, company: Company, text: str = "Plan it", **fields: Any) -> Any:
    return client.chat.completions.create(
        model=company.model, messages=[{"role": "user", "content": text}], **fields
    )


def test_chat_parses_into_pydantic(client: openai.OpenAI, company: Company) -> None:
    for seed in range(4):
        answer = client.chat.completions.parse(
            model=company.model,
            messages=[{"role": "user", "content": "Make a plan"}],
            response_format=Plan,
            seed=seed,
            max_tokens=400,
        )
        plan = answer.choices[0].message.parsed
        assert isinstance(plan, Plan) and 1 <= len(plan.steps) <= 3
        assert answer.choices[0].finish_reason == "stop"


def test_responses_parse_into_pydantic(client: openai.OpenAI, company: Company) -> None:
    answer = client.responses.parse(
        model=company.model, input="Make a plan", text_format=Plan, max_output_tokens=400, temperature=0
    )
    assert isinstance(answer.output_parsed, Plan)
    assert answer.text is not None and answer.text.format is not None
    assert answer.text.format.type == "json_schema"


def test_every_spelling_of_a_shape(client: openai.OpenAI, company: Company) -> None:
    def text(**body: Any) -> str:
        answer = client.completions.create(
            model=company.model,
            prompt="The answer is ",
            max_tokens=60,
            temperature=1.0,
            seed=3,
            extra_body=body,
        )
        assert answer.choices[0].finish_reason == "stop", answer
        return answer.choices[0].text

    lark = 'start: "<" NAME ">"\nNAME: /[a-z]{2,5}/'
    shapes: list[tuple[str, Any, str]] = [
        ("json", WEATHER, ""),
        ("regex", r"\d{3}-[A-F]{2,4}/x", r"\d{3}-[A-F]{2,4}/x"),
        ("choice", ["yes", "nö", "a/b"], "yes|nö|a/b"),
        ("grammar", lark, "<[a-z]{2,5}>"),
    ]
    for name, source, pattern in shapes:
        for body in ({"structured_outputs": {name: source}}, {f"guided_{name}": source}):
            found = text(**body)
            if pattern:
                assert re.fullmatch(pattern, found), (name, found)
            else:
                assert set(json.loads(found)) == {"city", "days"}
    assert re.fullmatch("[ab]{2}", text(regex="[ab]{2}"))
    assert re.fullmatch("x+y", text(ebnf='root ::= "x"+ "y"', max_tokens=200, logit_bias={}))
    assert json.loads(text(json_schema=json.dumps(WEATHER)))["days"] in range(1, 10)
    assert isinstance(
        json.loads(
            text(response_format={"type": "json_schema", "json_schema": {"name": "w", "schema": WEATHER}})
        ),
        dict,
    )


def test_a_shape_goes_with_everything_else(client: openai.OpenAI, company: Company) -> None:
    fields: dict[str, Any] = {
        "max_tokens": 60,
        "seed": 5,
        "n": 3,
        "logprobs": True,
        "top_logprobs": 2,
        "presence_penalty": 1.0,
        "logit_bias": {"17": 5},
        "extra_body": {
            "structured_outputs": {"regex": "[a-z]{1,12}(, [a-z]{1,12}){2,6}"},
            "min_tokens": 9,
            "top_k": 50,
            "repetition_penalty": 1.1,
        },
    }
    answer = ask(client, company, **fields)
    for choice in answer.choices:
        assert re.fullmatch("[a-z]{1,12}(, [a-z]{1,12}){2,6}", choice.message.content)
        assert len(choice.logprobs.content) >= 9
    again = ask(client, company, **fields)
    assert [choice.message.content for choice in again.choices] == [
        choice.message.content for choice in answer.choices
    ]
    # Where the grammar must end before `min_tokens`, it ends.
    short = ask(client, company, extra_body={"regex": "ab", "min_tokens": 20}, max_tokens=30)
    assert short.choices[0].message.content == "ab" and short.choices[0].finish_reason == "stop"


def test_what_cannot_be_kept_to_is_refused(client: openai.OpenAI, company: Company) -> None:
    def refused(sentence: str, **fields: Any) -> None:
        with pytest.raises(openai.BadRequestError) as caught:
            ask(client, company, **fields)
        assert sentence in str(caught.value), caught.value

    refused("unclosed group", extra_body={"regex": "a(b"})
    refused("look-around", extra_body={"regex": "(?=a)b"})
    refused("Unimplemented keys", extra_body={"guided_json": {"if": {"type": "string"}}})
    refused("Unsatisfiable", extra_body={"guided_json": False})
    refused("Unsatisfiable", extra_body={"structured_outputs": {"json": False}})
    refused("unknown name", extra_body={"guided_grammar": "start: nothing"})
    refused("it allows no text", extra_body={"guided_grammar": 'start: a\na: a "x"'})
    refused("exclude each other", extra_body={"regex": "a", "guided_json": {}})
    refused("16384 bytes", extra_body={"regex": "a" * 20_000})
    refused("nested more than", extra_body={"regex": "(" * 300 + ")" * 300})
    refused("ignore_eos", extra_body={"regex": "a+", "ignore_eos": True})
    refused("not in tools", tool_choice="required")
    refused("not in tools", tools=[TOOL], tool_choice={"type": "function", "function": {"name": "other"}})
    assert company.actor("tokenizer.0")["restarts"] == 0


def test_tools_are_called_whole(client: openai.OpenAI, company: Company) -> None:
    for choice in ("required", {"type": "function", "function": {"name": "get_weather"}}):
        answer = ask(client, company, tools=[TOOL], tool_choice=choice, seed=1, max_tokens=300)
        message = answer.choices[0].message
        assert message.content is None and answer.choices[0].finish_reason == "tool_calls"
        for call in message.tool_calls:
            assert call.type == "function" and call.function.name == "get_weather" and call.id
            assert json.loads(call.function.arguments)["city"] in ("Paris", "Oslo", "Lima")
    answer = ask(
        client,
        company,
        tools=[TOOL],
        tool_choice="required",
        parallel_tool_calls=False,
        seed=2,
        max_tokens=200,
    )
    assert len(answer.choices[0].message.tool_calls) == 1
    free = ask(client, company, tools=[TOOL], tool_choice="none", max_tokens=8)
    assert free.choices[0].message.tool_calls is None and free.choices[0].message.content
    either = ask(client, company, tools=[TOOL], max_tokens=200, temperature=0)
    for call in either.choices[0].message.tool_calls or []:
        json.loads(call.function.arguments)


def test_only_allowed_tools_are_called(client: openai.OpenAI, company: Company) -> None:
    """The model sees all tools, so the prompt is the same, and calls only those."""
    other: Any = {"type": "function", "function": {"name": "other", "parameters": {"type": "object"}}}
    named: Any = {"type": "function", "function": {"name": "get_weather"}}
    choice: Any = {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [named]}}
    every = ask(client, company, tools=[other, TOOL], tool_choice="required", max_tokens=200, temperature=0)
    for seed in range(3):
        answer = ask(client, company, tools=[other, TOOL], tool_choice=choice, seed=seed, max_tokens=300)
        calls = answer.choices[0].message.tool_calls
        assert {call.function.name for call in calls} == {"get_weather"}
        assert answer.usage.prompt_tokens == every.usage.prompt_tokens
    choice["allowed_tools"]["mode"] = "auto"
    maybe = ask(client, company, tools=[other, TOOL], tool_choice=choice, max_tokens=100, temperature=0)
    assert all(call.function.name == "get_weather" for call in maybe.choices[0].message.tool_calls or ())
    flat_other: Any = {"type": "function", "name": "other", "parameters": {"type": "object"}}
    flat: Any = {
        "type": "allowed_tools",
        "mode": "required",
        "tools": [{"type": "function", "name": "get_weather"}],
    }
    response = client.responses.create(
        model=company.model,
        input="x",
        tools=[flat_other, FLAT_TOOL],
        tool_choice=flat,
        max_output_tokens=300,
        temperature=0,
    )
    assert {item.name for item in response.output if item.type == "function_call"} == {"get_weather"}
    for bad in (
        {"type": "allowed_tools", "mode": "auto", "tools": []},
        {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "third"}]},
        {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "web_search"}]},
        {"type": "allowed_tools", "mode": "never", "tools": [{"type": "function", "name": "other"}]},
    ):
        with pytest.raises(openai.BadRequestError) as refused:
            client.responses.create(
                model=company.model,
                input="x",
                tools=[flat_other, FLAT_TOOL],
                tool_choice=bad,  # type: ignore[arg-type]
            )
        assert refused.value.param == "tool_choice"


def test_tools_parse_into_pydantic_in_a_stream(client: openai.OpenAI, company: Company) -> None:
    with client.chat.completions.stream(
        model=company.model,
        messages=[{"role": "user", "content": "What is the weather in Paris?"}],
        tools=[openai.pydantic_function_tool(GetWeather)],
        tool_choice="required",
        parallel_tool_calls=False,
        seed=3,
    ) as stream:
        kinds = [event.type for event in stream]
        answer = stream.get_final_completion()
    assert "tool_calls.function.arguments.delta" in kinds and "tool_calls.function.arguments.done" in kinds
    calls = answer.choices[0].message.tool_calls
    assert calls is not None and isinstance(calls[0].function.parsed_arguments, GetWeather)
    assert answer.choices[0].finish_reason == "tool_calls"


def test_a_call_and_its_output_in_responses(client: openai.OpenAI, company: Company) -> None:
    fields: dict[str, Any] = {"model": company.model, "tools": [FLAT_TOOL], "extra_body": {"seed": 4}}
    stream = client.responses.create(
        input="Weather in Oslo?", tool_choice="required", parallel_tool_calls=False, stream=True, **fields
    )
    events = list(stream)
    kinds = [event.type for event in events]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert kinds[2] == "response.output_item.added" and "response.output_text.delta" not in kinds
    deltas = [event.delta for event in events if event.type == "response.function_call_arguments.delta"]
    done = next(event for event in events if event.type == "response.function_call_arguments.done")
    assert done.arguments == "".join(deltas) and len(deltas) > 1
    response = events[-1].response
    (call,) = response.output
    assert call.type == "function_call" and json.loads(call.arguments)["days"] in range(1, 10)
    result: Any = {"type": "function_call_output", "call_id": call.call_id, "output": "sunny"}
    after = client.responses.create(
        input=[result], previous_response_id=response.id, tool_choice="none", max_output_tokens=20, **fields
    )
    assert after.status in ("completed", "incomplete") and after.output_text
    given: Any = [{"role": "user", "content": "Weather in Oslo?"}, call.model_dump(), result]
    again = client.responses.create(input=given, tool_choice="none", max_output_tokens=20, **fields)
    assert again.usage.input_tokens == after.usage.input_tokens, "the conversation was kept whole"


# The client calls a form of websockets' connect() that websockets 17 deprecates; it works.
@pytest.mark.filterwarnings("ignore:connect\\(\\) must be used as a context manager:DeprecationWarning")
def test_calls_over_the_websocket(client: openai.OpenAI, company: Company) -> None:
    with client.responses.connect() as connection:
        connection.response.create(
            model=company.model, input="Weather in Lima?", tools=[FLAT_TOOL], tool_choice="required"
        )
        kinds = []
        for event in connection:
            kinds.append(event.type)
            if event.type in ("response.completed", "response.incomplete", "response.failed", "error"):
                break
        assert kinds[-1] == "response.completed"
        assert "response.function_call_arguments.done" in kinds
        connection.response.create(
            model=company.model,
            input="x",
            text={"format": {"type": "json_schema", "name": "a", "schema": False}},
        )
        for event in connection:
            if event.type == "response.failed":
                break
        assert event.response.error is not None and "text.format.schema" in event.response.error.message


def test_constrained_and_free_together_are_each_as_alone(client: openai.OpenAI, company: Company) -> None:
    def run(index: int) -> str:
        body: dict[str, Any] = {"structured_outputs": {"json": WEATHER}} if index % 2 else {}
        answer = client.completions.create(
            model=company.model, prompt=f"# {index}\n", max_tokens=60, seed=index, extra_body=body
        )
        return answer.choices[0].text

    alone = [run(index) for index in range(6)]
    with ThreadPoolExecutor(24) as crowd:
        assert list(crowd.map(run, list(range(6)) * 4)) == alone * 4
    assert all(json.loads(text)["days"] in range(1, 10) for text in alone[1::2])
