"""`/generate`, Anthropic messages, stored responses and the OpenAPI document, against a running company."""

from __future__ import annotations

import itertools
import json
import pathlib
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import anthropic
import httpx2
import jsonschema
import openai
import pytest

from tests.serving import Company, serving
from tools.attack.requests import BODIES


@pytest.fixture(scope="module")
def company() -> Iterator[Company]:
    with serving("--dtype", "float32", "--page-size", "4") as running:
        yield running


@pytest.fixture(scope="module")
def root(company: Company) -> str:
    return company.url.removesuffix("/v1")


@pytest.fixture(scope="module")
def raw(root: str) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=root, timeout=110) as made:
        yield made


@pytest.fixture(scope="module")
def client(company: Company) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=company.url, api_key="none", max_retries=0, timeout=110) as made:
        yield made


@pytest.fixture(scope="module")
def claude(root: str) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=root, api_key="none", max_retries=0, timeout=110) as made:
        yield made


def generate(raw: httpx2.Client, status: int = 200, **fields: Any) -> Any:
    answer = raw.post("/generate", json=fields)
    assert answer.status_code == status, answer.text
    return answer.json()


GREEDILY = {"temperature": 0}
GREEDY = {"temperature": 0, "max_new_tokens": 12, "ignore_eos": True}


def test_tokens_in_and_tokens_out_are_the_text(raw: httpx2.Client) -> None:
    ids = raw.post("/tokenize", json={"prompt": "def add("}).json()["tokens"]
    by_text = generate(raw, text="def add(", sampling_params=GREEDY)
    by_ids = generate(raw, input_ids=ids, sampling_params=GREEDY)
    assert by_ids["output_ids"] == by_text["output_ids"] and len(by_ids["output_ids"]) == 12
    assert by_ids["text"] == by_text["text"]
    text = raw.post("/detokenize", json={"tokens": by_ids["output_ids"]}).json()["prompt"]
    assert text == by_ids["text"]
    meta = by_ids["meta_info"]
    assert meta["finish_reason"] == {"type": "length", "length": 12}
    assert (meta["prompt_tokens"], meta["completion_tokens"]) == (len(ids), 12)


def test_a_batch_with_logprobs(raw: httpx2.Client) -> None:
    answers = generate(
        raw,
        text=["def add(", "Once upon"],
        sampling_params={**GREEDY, "n": 2},
        return_logprob=True,
        logprob_start_len=0,
        top_logprobs_num=2,
        return_text_in_logprobs=True,
    )
    assert len(answers) == 4
    for answer in answers:
        meta = answer["meta_info"]
        assert [entry[1] for entry in meta["output_token_logprobs"]] == answer["output_ids"]
        assert all(len(top) == 2 for top in meta["output_top_logprobs"])
        assert meta["input_token_logprobs"][0][0] is None
        assert len(meta["input_token_logprobs"]) == meta["prompt_tokens"]
        assert meta["input_top_logprobs"][0] is None and len(meta["input_top_logprobs"][1]) == 2
        assert meta["output_token_logprobs"][0][0] == pytest.approx(meta["output_top_logprobs"][0][0][0])


def test_a_stream_tells_all_that_there_is_so_far(raw: httpx2.Client) -> None:
    whole = generate(raw, text="def add(", sampling_params=GREEDY)
    seen: list[str] = []
    body = {"text": "def add(", "sampling_params": GREEDY, "stream": True}
    with raw.stream("POST", "/generate", json=body) as stream:
        assert stream.headers["content-type"].startswith("text/event-stream")
        seen = [line.removeprefix("data: ") for line in stream.iter_lines() if line]
    assert seen[-1] == "[DONE]"
    documents = [httpx2.Response(200, text=line).json() for line in seen[:-1]]
    assert all(b["text"].startswith(a["text"]) for a, b in itertools.pairwise(documents))
    last = documents[-1]
    assert (last["text"], last["output_ids"]) == (whole["text"], whole["output_ids"])
    assert last["meta_info"]["finish_reason"]["type"] == "length"


def test_generate_obeys_a_grammar(raw: httpx2.Client) -> None:
    for rule, allowed in (
        ({"regex": "(yes|no)"}, {"yes", "no"}),
        ({"json_schema": '{"enum": [7, 8]}'}, {"7", "8"}),
    ):
        answer = generate(raw, text="Answer:", sampling_params={"max_new_tokens": 16, **rule})
        assert answer["text"].strip() in allowed


def test_what_generate_refuses(raw: httpx2.Client) -> None:
    for fields, param in (
        ({}, "text"),
        ({"text": "a", "input_ids": [1]}, "text"),
        ({"input_ids": [-1]}, "input_ids"),
        ({"text": "a", "sampling_params": {"max_new_tokens": -1}}, "max_new_tokens"),
        ({"text": "a", "sampling_params": {"n": 0}}, "n"),
        ({"text": "a", "sampling_params": {"stop_regex": "a"}}, "stop_regex"),
        ({"text": "a", "lora_path": 5}, "lora_path"),
        ({"text": "a", "return_logprob": True, "top_logprobs_num": 21}, "top_logprobs_num"),
    ):
        assert generate(raw, 400, **fields)["error"]["param"] == param


def test_anthropics_client(claude: anthropic.Anthropic, company: Company) -> None:
    messages: Any = [{"role": "user", "content": [{"type": "text", "text": "What is 12 + 30?"}]}]
    whole = claude.messages.create(model=company.model, max_tokens=40, messages=messages, extra_body=GREEDILY)
    assert whole.content[0].type == "text" and "42" in whole.content[0].text
    assert whole.stop_reason == "end_turn" and whole.usage.output_tokens > 0
    counted = claude.messages.count_tokens(model=company.model, messages=messages)
    read = whole.usage.cache_read_input_tokens or 0
    assert counted.input_tokens == whole.usage.input_tokens + read
    with claude.messages.stream(
        model=company.model, max_tokens=40, messages=messages, extra_body=GREEDILY
    ) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert text == whole.content[0].text == final.content[0].text
    assert (final.stop_reason, final.usage.output_tokens) == ("end_turn", whole.usage.output_tokens)


def test_anthropics_client_stops_where_it_says(claude: anthropic.Anthropic, company: Company) -> None:
    fields: Any = {
        "model": company.model,
        "system": "Be brief.",
        "messages": [{"role": "user", "content": "What is 12 + 30?"}],
        "extra_body": GREEDILY,
    }
    cut = claude.messages.create(**fields, max_tokens=2)
    assert (cut.stop_reason, cut.usage.output_tokens) == ("max_tokens", 2)
    stopped = claude.messages.create(**fields, max_tokens=40, stop_sequences=["2"])
    assert (stopped.stop_reason, stopped.stop_sequence) == ("stop_sequence", "2")
    with pytest.raises(anthropic.NotFoundError) as missing:
        claude.messages.create(**{**fields, "model": "other"}, max_tokens=2)
    assert missing.value.body["error"]["type"] == "not_found_error"  # type: ignore[index]
    with pytest.raises(anthropic.BadRequestError, match="takes text only"):
        image = {"type": "image", "source": {"type": "url", "url": "http://x"}}
        claude.messages.create(**{**fields, "messages": [{"role": "user", "content": [image]}]}, max_tokens=2)


WEATHER: dict[str, Any] = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "enum": ["Paris", "Oslo"]},
        "days": {"type": "integer", "minimum": 1, "maximum": 9},
    },
    "required": ["city", "days"],
    "additionalProperties": False,
}
TOOLS: Any = [
    {"name": "get_weather", "description": "The weather.", "input_schema": WEATHER},
    {"name": "other", "input_schema": {"type": "object", "properties": {}}},
]


def test_anthropics_client_calls_functions(claude: anthropic.Anthropic, company: Company) -> None:
    asked: Any = {"role": "user", "content": "Weather in Oslo?"}
    fields: Any = {"model": company.model, "max_tokens": 120, "tools": TOOLS, "extra_body": GREEDILY}
    choice: Any = {"type": "tool", "name": "get_weather", "disable_parallel_tool_use": True}
    whole = claude.messages.create(**fields, messages=[asked], tool_choice=choice)
    (call,) = whole.content
    assert call.type == "tool_use" and call.name == "get_weather" and whole.stop_reason == "tool_use"
    assert set(call.input) == {"city", "days"} and call.input["days"] in range(1, 10)  # type: ignore[call-overload]
    with claude.messages.stream(**fields, messages=[asked], tool_choice=choice) as stream:
        pieces = [event.partial_json for event in stream if event.type == "input_json"]
        final = stream.get_final_message()
    assert len(pieces) > 1 and json.loads("".join(pieces)) == call.input
    (again,) = final.content
    assert again.type == "tool_use" and again.input == call.input and final.stop_reason == "tool_use"
    result: Any = {"type": "tool_result", "tool_use_id": call.id, "content": "sunny"}
    said: Any = {"role": "assistant", "content": [{"type": "text", "text": "Wait."}, call.to_dict()]}
    back: Any = {"role": "user", "content": [result, {"type": "text", "text": "And now?"}]}
    after = claude.messages.create(**fields, messages=[asked, said, back], tool_choice={"type": "none"})
    assert all(block.type == "text" for block in after.content) and after.usage.output_tokens
    anything = claude.messages.create(**fields, messages=[asked], tool_choice={"type": "any"})
    assert {block.type for block in anything.content} == {"tool_use"}
    shorter = claude.messages.count_tokens(model=company.model, messages=[asked])
    assert (
        claude.messages.count_tokens(model=company.model, messages=[asked], tools=TOOLS).input_tokens
        > shorter.input_tokens
    )
    cut = claude.messages.create(**{**fields, "max_tokens": 20}, messages=[asked], tool_choice=choice)
    assert cut.stop_reason == "max_tokens" and cut.content[0].type == "tool_use"


def test_what_is_wrong_with_anthropics_tools(claude: anthropic.Anthropic, company: Company) -> None:
    def refused(sentence: str, content: Any = "x", **more: Any) -> None:
        fields: Any = {"model": company.model, "max_tokens": 4, **more}
        with pytest.raises(anthropic.BadRequestError, match=sentence):
            claude.messages.create(messages=[{"role": "user", "content": content}], **fields)

    refused("not in tools", tools=TOOLS, tool_choice={"type": "tool", "name": "third"})
    refused("not in tools", tool_choice={"type": "any"})
    refused("with a name", tools=TOOLS, tool_choice={"type": "tool"})
    refused("must be a function", tools=[{"type": "web_search_20250305", "name": "web_search"}])
    refused("a function's name", tools=[{"name": "a b", "input_schema": {}}])
    refused("cannot be used", tools=[{"name": "f", "input_schema": {"not": {}}}], tool_choice={"type": "any"})
    refused("no tool_use_id", content=[{"type": "tool_result", "content": "x"}])


def test_the_input_of_a_stored_response(client: openai.OpenAI, company: Company) -> None:
    first = client.responses.create(model=company.model, input="What is 1 + 2?", max_output_tokens=8)
    call: Any = {"type": "function_call", "call_id": "c1", "name": "f", "arguments": '{"x": 1}'}
    output: Any = {"type": "function_call_output", "call_id": "c1", "output": "3"}
    second = client.responses.create(
        model=company.model,
        previous_response_id=first.id,
        input=[{"role": "user", "content": "And 3 + 4?"}, call, output],
        max_output_tokens=8,
    )
    listed = [item.to_dict() for item in client.responses.input_items.list(second.id, order="asc")]
    kinds = [item["type"] for item in listed]
    assert kinds == ["message", "message", "message", "function_call", "function_call_output"]
    assert listed[0]["content"][0] == {"type": "input_text", "text": "What is 1 + 2?"}
    backwards = list(client.responses.input_items.list(second.id, limit=2))
    assert [item.id for item in backwards] == [item["id"] for item in reversed(listed)]
    after = client.responses.input_items.list(second.id, order="asc", after=listed[1]["id"], limit=1)
    assert after.data[0].id == listed[2]["id"] and after.has_more
    with pytest.raises(openai.BadRequestError, match="limit"):
        client.responses.input_items.list(second.id, limit=1000)
    with pytest.raises(openai.BadRequestError, match="include"):
        client.responses.create(model=company.model, input="x", include=["everything"])  # type: ignore[list-item]


def test_a_warm_up_fills_the_prefix_cache(client: openai.OpenAI, company: Company) -> None:
    body: Any = {"model": company.model, "input": "Warm this long sentence up, " * 8, "max_output_tokens": 4}
    warm = client.responses.create(**body, extra_body={"generate": False, "cache_salt": "warm"})
    assert warm.output == [] and warm.usage is not None and warm.usage.output_tokens == 0
    hot = client.responses.create(**body, extra_body={"cache_salt": "warm"})
    cold = client.responses.create(**body, extra_body={"cache_salt": "other"})
    assert hot.usage is not None and cold.usage is not None
    assert hot.usage.input_tokens_details.cached_tokens >= warm.usage.input_tokens - 8
    assert cold.usage.input_tokens_details.cached_tokens == 0
    chained = client.responses.create(
        model=company.model, input="Go on.", previous_response_id=warm.id, max_output_tokens=4
    )
    assert chained.usage is not None and chained.usage.input_tokens > warm.usage.input_tokens


def fits(document: Any, schema: Any, value: Any) -> None:
    """Whether a value is as the OpenAPI document says."""
    whole = {**schema, "components": document["components"]}
    jsonschema.Draft202012Validator(whole).validate(value)


@pytest.mark.parametrize(
    ("path", "body"), [(path, body) for path, bodies in BODIES.items() for body in bodies]
)
def test_what_the_document_allows_is_served_and_answered_as_it_says(
    raw: httpx2.Client, company: Company, path: str, body: dict[str, Any]
) -> None:
    document = raw.get("/openapi.json").json()
    operation = document["paths"][path]["post"]
    sent = {"model": company.model, **body}
    fits(document, operation["requestBody"]["content"]["application/json"]["schema"], sent)
    answer = raw.post(path, json=sent)
    assert answer.status_code == 200, answer.text
    kind = answer.headers["content-type"]
    schema = operation["responses"]["200"]["content"][kind]["schema"]
    fits(document, schema, answer.json() if kind == "application/json" else answer.text)


def test_the_life_of_a_stored_response_is_as_the_document_says(raw: httpx2.Client, company: Company) -> None:
    document = raw.get("/openapi.json").json()
    place = "/v1/responses/{id}"
    body = {"model": company.model, "input": "hi", "max_output_tokens": 2}
    made = raw.post("/v1/responses", json=body).json()
    for method, path, status in (
        ("get", place, 200),
        ("get", f"{place}/input_items", 200),
        ("post", f"{place}/cancel", 200),
        ("delete", place, 200),
        ("get", place, 404),
        ("get", f"{place}/input_items", 404),
        ("post", f"{place}/cancel", 404),
        ("delete", place, 404),
    ):
        answer = raw.request(method.upper(), path.replace("{id}", made["id"]))
        assert answer.status_code == status, (method, path, answer.text)
        described = document["paths"][path][method]["responses"][str(status)]
        fits(document, described["content"]["application/json"]["schema"], answer.json())


CHECKS = (
    "not_a_server_error,status_code_conformance,content_type_conformance,response_headers_conformance,"
    "response_schema_conformance,negative_data_rejection,unsupported_method"
)


@pytest.mark.timeout(300)
def test_schemathesis_finds_nothing(tmp_path: pathlib.Path) -> None:
    """What it sends is of the schemas, or breaks them; what they cannot say is refused with a sentence."""
    with serving("--executor", "hash", "--max-model-len", "256") as company:
        before = company.pids()
        done = subprocess.run(
            [
                str(pathlib.Path(sys.executable).parent / "schemathesis"),
                *("run", f"{company.url.removesuffix('/v1')}/openapi.json", "--checks", CHECKS),
                *("--exclude-path-regex", "^/health|^/_company/live", "--exclude-tag", "administration"),
                *("--phases", "coverage,fuzzing", "--max-examples", "10", "--max-time", "18"),
                *("--generation-deterministic", "--no-shrink", "--suppress-health-check", "all"),
                *("--warnings", "off", "--request-timeout", "60", "--continue-on-failure", "--no-color"),
            ],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
        assert company.pids() == before
