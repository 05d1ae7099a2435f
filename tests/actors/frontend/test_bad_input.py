"""Every class of bad request over a real socket: its status, field and sentence; and nothing is claimed."""

from __future__ import annotations

import json
from typing import Any

import pytest

from actors.frontend.access import Scope
from actors.frontend.operations import OPERATIONS
from tests.actors.frontend.harness import Answer, Raw, World, ask, chat_body, look, world

CHAT, TEXT, RESPONSES = "/v1/chat/completions", "/v1/completions", "/v1/responses"


def nested(depth: int) -> Any:
    value: Any = {}
    for _ in range(depth):
        value = {"a": value}
    return value


IMAGE = {"type": "image_url", "image_url": {"url": "data:,"}}
FUNCTION = {"type": "function", "function": {"name": "f", "parameters": {}}}

CHATS: dict[str, tuple[dict[str, Any], str | None, str]] = {
    "other model": ({"model": "gpt"}, "model", "does not exist"),
    "no messages": ({"messages": []}, "messages", "must not be empty"),
    "unknown role": ({"messages": [{"role": "boss", "content": "x"}]}, "messages[0].role", "must be one of"),
    "image": (
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}, IMAGE]}]},
        "messages[0].content[1]",
        "takes text only",
    ),
    "part without text": (
        {"messages": [{"role": "user", "content": [{"type": "text"}]}]},
        "messages[0].content[0]",
        "has no text",
    ),
    "temperature": ({"temperature": 101}, "temperature", "between 0 and 100"),
    "negative temperature": ({"temperature": -0.1}, "temperature", "between 0 and 100"),
    "top_p": ({"top_p": 0}, "top_p", "between"),
    "top_k": ({"top_k": -2}, "top_k", "between"),
    "min_p": ({"min_p": 1.5}, "min_p", "between"),
    "presence": ({"presence_penalty": 3}, "presence_penalty", "between"),
    "frequency": ({"frequency_penalty": -3}, "frequency_penalty", "between"),
    "repetition": ({"repetition_penalty": 0}, "repetition_penalty", "between"),
    "seed": ({"seed": -1}, "seed", "between 0 and"),
    "no tokens": ({"max_tokens": 0}, "max_tokens", "between 1"),
    "min over max": ({"max_tokens": 2, "min_tokens": 3}, "min_tokens", "must not exceed"),
    "negative min": ({"min_tokens": -1}, "min_tokens", "between"),
    "n": ({"n": 0}, "n", "between 1 and 128"),
    "many choices": ({"n": 10**9}, "n", "between 1 and 128"),
    "choices beyond the ledger": ({"n": 100}, "n", "at most 64 choices"),
    "best_of": ({"n": 3, "best_of": 2}, "best_of", "between n and 128"),
    "many stops": ({"stop": ["a"] * 17}, "stop", "at most 16"),
    "empty stop": ({"stop": ""}, "stop", "1 to 1024 characters"),
    "long stop": ({"stop": ["a" * 1025]}, "stop", "1 to 1024 characters"),
    "stop ids": ({"stop_token_ids": [1000]}, "stop_token_ids", "vocabulary has 1000"),
    "negative stop ids": ({"stop_token_ids": [-1]}, "stop_token_ids", "vocabulary has 1000"),
    "many stop ids": ({"stop_token_ids": [1] * 129}, "stop_token_ids", "at most 128"),
    "bias id": ({"logit_bias": {"1000": 1}}, "logit_bias", "vocabulary has 1000"),
    "bias value": ({"logit_bias": {"1": 101}}, "logit_bias", "between -100 and 100"),
    "many biases": ({"logit_bias": {str(i): 1 for i in range(1025)}}, "logit_bias", "at most 1024"),
    "no completion tokens": (
        {"max_completion_tokens": 0, "max_tokens": 5},
        "max_completion_tokens",
        "max_completion_tokens must be",
    ),
    "many logprobs": ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "between 0 and 20"),
    "top without logprobs": ({"top_logprobs": 2}, "top_logprobs", "only be set with logprobs"),
    "stream options": ({"stream_options": {}}, "stream_options", "only be set with stream"),
    "format": ({"response_format": {"type": "xml"}}, "response_format", "'json_schema' or 'structural_tag'"),
    "no schema": ({"response_format": {"type": "json_schema"}}, "response_format", "has no schema"),
    "schema": ({"guided_json": "{"}, "guided_json", "not valid JSON"),
    "deep schema": ({"guided_json": nested(70)}, "guided_json", "nested more than"),
    "schema type": ({"json_schema": 5}, "json_schema", "must be a JSON schema"),
    "regex": ({"regex": ["a"]}, "regex", "must be a text"),
    "long regex": ({"regex": "a" * 20_000}, "regex", "16384 bytes"),
    "choice": ({"guided_choice": ["a", ""]}, "guided_choice", "none of them empty"),
    "structured": ({"structured_outputs": []}, "structured_outputs", "must be an object"),
    "structural tag": (
        {"structured_outputs": {"structural_tag": "x"}},
        "structured_outputs.structural_tag",
        "not valid JSON",
    ),
    "no such format": (
        {"response_format": {"type": "structural_tag", "format": {"type": "qwen_xml_parameter"}}},
        "response_format",
        "Invalid value 'qwen_xml_parameter'",
    ),
    "tag without trigger": (
        {"structural_tag": {"structures": [{"begin": "<a>", "schema": {}, "end": ""}], "triggers": ["<b"]}},
        "structural_tag",
        "no trigger begins the tag '<a>'",
    ),
    "text amid a sequence": (
        {
            "structural_tag": {
                "format": {"type": "sequence", "elements": [{"type": "any_text"}, {"type": "any_text"}]}
            }
        },
        "structural_tag",
        "only the last element",
    ),
    "two shapes": ({"regex": "a", "ebnf": 'root ::= "a"'}, "ebnf", "exclude each other"),
    "bad words": ({"bad_words": ["a"]}, "bad_words", "not supported"),
    "allowed ids": ({"allowed_token_ids": [1]}, "allowed_token_ids", "not supported"),
    "lora": ({"lora_path": ["x"]}, "lora_path", "name of a loaded adapter"),
    "template": ({"chat_template": "{{ lipsum }}"}, "chat_template", "not supported"),
    "echo": ({"echo": True}, "echo", "not supported"),
    "moderation": ({"moderation": {"model": "m"}}, "moderation", "not supported"),
    "spoken": (
        {"messages": [{"role": "assistant", "audio": {"id": "a"}}]},
        "messages[0].audio",
        "not supported",
    ),
    "functions": ({"functions": [{"name": "f"}]}, "functions", "not supported"),
    "audio": ({"modalities": ["text", "audio"]}, "modalities", "not supported"),
    "forced without tools": ({"tool_choice": "required"}, "tool_choice", "not in tools"),
    "unknown tool": (
        {"tools": [FUNCTION], "tool_choice": {"type": "function", "function": {"name": "g"}}},
        "tool_choice",
        "not in tools",
    ),
    "tool choice": ({"tool_choice": {"type": "function"}}, "tool_choice", "'auto', 'none', 'required'"),
    "tool name": (
        {"tools": [{"type": "function", "function": {"name": "a b"}}]},
        "tools[0].function.name",
        "1 to 128 letters",
    ),
    "other tool": ({"tools": [{"type": "web_search"}]}, "tools[0].type", "must be a function"),
    "deep tool": (
        {"tools": [{"type": "function", "function": {"name": "f", "parameters": nested(70)}}]},
        "tools[0].function.parameters",
        "nested more than",
    ),
    "template arguments": ({"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs", "may not set"),
    "deep arguments": ({"chat_template_kwargs": nested(70)}, "chat_template_kwargs", "nested more than"),
    "continue a user": ({"continue_final_message": True}, "continue_final_message", "of the assistant"),
    "continue and prompt": (
        {"continue_final_message": True, "add_generation_prompt": True},
        "continue_final_message",
        "exclude each other",
    ),
    "salt": ({"cache_salt": "a" * 300}, "cache_salt", "at most 256"),
    "priority": ({"priority": 2**40}, "priority", "32 bits"),
}
TEXTS: dict[str, tuple[dict[str, Any], str | None, str]] = {
    "no prompt": ({"prompt": []}, "prompt", "must not be empty"),
    "empty text": ({"prompt": ""}, "prompt", "must not be empty"),
    "empty in list": ({"prompt": ["a", ""]}, "prompt", "must not be empty"),
    "mixed": ({"prompt": [1, "a"]}, "prompt", "mixes"),
    "token": ({"prompt": [1, 1000]}, "prompt", "names token 1000"),
    "negative token": ({"prompt": [[-1]]}, "prompt", "names token -1"),
    "huge token": ({"prompt": [2**40]}, "prompt", "names token"),
    "many prompts": ({"prompt": ["a"] * 1025}, "prompt", "at most 1024 prompts"),
    "batch beyond the ledger": ({"prompt": ["a"] * 65}, "n", "at most 64 choices"),
    "suffix": ({"suffix": "z"}, "suffix", "not supported"),
    "best of a stream": ({"best_of": 2, "stream": True}, "best_of", "cannot be streamed"),
    "prompt logprobs of a stream": (
        {"prompt_logprobs": 1, "stream": True},
        "prompt_logprobs",
        "cannot be streamed",
    ),
    "prompt logprobs": ({"prompt_logprobs": 21}, "prompt_logprobs", "between 0 and 20"),
    "truncation": ({"truncate_prompt_tokens": 0}, "truncate_prompt_tokens", "must be positive"),
    "logprobs": ({"logprobs": 21}, "logprobs", "between 0 and 20"),
}
ITEMS = "input[0]"
INPUTS: dict[str, tuple[dict[str, Any], str | None, str]] = {
    "no input": ({"input": None}, "input", "Missing required parameter"),
    "no model": ({"model": None}, "model", "Missing required parameter"),
    "role": ({"input": [{"role": "boss", "content": "x"}]}, "input[0].role", "must be one of"),
    "item": ({"input": [{"type": "item_reference", "id": "x"}]}, ITEMS, "not supported"),
    "image": (
        {"input": [{"role": "user", "content": [{"type": "input_image"}]}]},
        "input[0].content[0]",
        "takes text only",
    ),
    "call without name": ({"input": [{"type": "function_call"}]}, "input[0].name", "Missing"),
    "output without id": (
        {"input": [{"type": "function_call_output", "output": "x"}]},
        "input[0].call_id",
        "Missing",
    ),
    "schema": ({"text": {"format": {"type": "json_schema"}}}, "text.format", "has no schema"),
    "tool": ({"tools": [{"type": "web_search"}]}, "tools[0].type", "must be a function"),
    "truncation": ({"truncation": "middle"}, "truncation", "'auto' or 'disabled'"),
    "token ids": ({"return_token_ids": True}, "return_token_ids", "not supported"),
    "moderation": ({"moderation": {"model": "m"}}, "moderation", "not supported"),
    "conversation": ({"conversation": "conv_1"}, "conversation", "not supported"),
    "prompt": ({"prompt": {"id": "p"}}, "prompt", "not supported"),
    "metadata": ({"metadata": {str(i): "" for i in range(17)}}, "metadata", "at most 16"),
    "metadata type": ({"metadata": {"a": 1}}, "metadata[...]", "expected str, got int"),
    "tokens": ({"max_output_tokens": 0}, "max_output_tokens", "max_output_tokens must be"),
    "previous": ({"previous_response_id": "resp_x"}, "previous_response_id", "'resp_x' not found"),
}


def refused(w: World, answer: Answer, status: int, param: str | None, sentence: str) -> None:
    assert (answer.status, answer.error["param"]) == (status, param), answer.body
    assert sentence in answer.error["message"]
    assert answer.headers["x-request-id"].startswith("req_")
    assert w.open_slots() == 0 and w.engine.generates == []


@pytest.mark.parametrize("table", ["chat", "completions", "responses"])
async def test_each_bad_field(table: str) -> None:
    path, cases, base = {
        "chat": (CHAT, CHATS, chat_body()),
        "completions": (TEXT, TEXTS, {"model": "tiny", "prompt": "one two"}),
        "responses": (RESPONSES, INPUTS, {"model": "tiny", "input": "one two"}),
    }[table]
    async with world() as w:
        raw = await Raw.connect(w.port)
        for fields, param, sentence in cases.values():
            await raw.post(path, {**base, **fields})
            status = 404 if param == "model" and "exist" in sentence else 400
            refused(w, await raw.answer(), status, param, sentence)
        await raw.post(path, base)
        assert (await raw.answer()).status == 200
        await raw.aclose()


async def test_unsupported_says_so_in_its_code() -> None:
    async with world() as w:
        answer = await ask(w.port, CHAT, chat_body(bad_words=["x"]))
        assert answer.error["code"] == "unsupported"
        for format in ({"type": "qwen_xml_parameter"}, {"type": "any_text", "excludes": ["a"]}):
            answer = await ask(w.port, CHAT, chat_body(structural_tag={"format": format}))
            assert (answer.error["code"], answer.error["param"]) == ("unsupported", "structural_tag")
        answer = await ask(w.port, CHAT, chat_body(structural_tag={"format": {"type": "const_string"}}))
        assert (answer.error["code"], answer.error["param"]) == (None, "structural_tag")
        answer = await ask(w.port, CHAT, chat_body(model="x"))
        assert answer.error["code"] == "model_not_found"


async def test_neutral_values_of_unserved_fields_pass() -> None:
    neutral = {
        "response_format": {"type": "text"},
        "best_of": 1,
        "tools": [],
        "tool_choice": "auto",
        "logit_bias": {},
        "use_beam_search": False,
        "length_penalty": 1.0,
        "service_tier": "auto",
        "store": True,
        "metadata": {"a": "b"},
        "parallel_tool_calls": True,
        "made_up": nested(200),
        "stop": None,
        "n": None,
    }
    async with world() as w:
        assert (await ask(w.port, CHAT, chat_body(**neutral))).status == 200


async def test_bad_json_over_http() -> None:
    async with world() as w:
        for body in (b"", b"{", b"\xff", b'{"x":' + b"[" * 200_000):
            refused(w, await ask(w.port, CHAT, body), 400, None, "The request body")
        twice = b'{"model":"tiny","messages":[],"model":"x"}'
        refused(w, await ask(w.port, CHAT, twice), 400, "model", "twice in one object")


async def test_body_limit() -> None:
    async with world(max_body=1000) as w:
        refused(w, await ask(w.port, CHAT, chat_body("x" * 1000)), 413, None, "larger than 1000 bytes")
        assert (await ask(w.port, CHAT, chat_body("x" * 100))).status == 200


async def test_unknown_routes_and_wrong_methods() -> None:
    async with world() as w:
        for path in (
            "//v1/models",
            "/v1",
            "/v1/models/",
            "/v1/responses/a/b",
            "/v1/../health",
            "/metricsx",
        ):
            answer = await look(w.port, path)
            assert (answer.status, answer.error["code"]) == (404, "not_found"), path
        answer = await look(w.port, CHAT)
        assert answer.status == 405 and answer.headers["allow"] == "POST, OPTIONS"
        assert answer.error["code"] == "method_not_allowed"
        answer = await look(w.port, "/v1/models", method="DELETE")
        assert answer.status == 405 and answer.headers["allow"] == "GET, HEAD, OPTIONS"
        answer = await look(w.port, CHAT, method="OPTIONS")
        assert answer.status == 204 and answer.headers["allow"] == "POST, OPTIONS"
        assert (await look(w.port, "/v1/models", method="HEAD")).status == 200
        answer = await look(w.port, RESPONSES)
        assert (answer.status, answer.error["code"]) == (426, "upgrade_required")


@pytest.mark.parametrize("path", ["/v1/messages", "/v1/messages/count_tokens"])
async def test_every_refusal_of_anthropics_api_has_its_shape(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(answer: Answer, status: int, kind: str) -> None:
        assert (answer.status, answer.json["type"], answer.error["type"]) == (status, "error", kind)
        assert answer.json["request_id"] == answer.headers["x-request-id"]

    key = "authorization: Bearer one"
    async with world(api_keys=("one",), max_body=1000) as w:
        refused(await ask(w.port, path, {}), 401, "authentication_error")
        refused(await ask(w.port, path, {}, "origin: http://bad"), 403, "permission_error")
        answer = await look(w.port, path, key)
        refused(answer, 405, "invalid_request_error")
        assert answer.headers["allow"] == "POST, OPTIONS"
        refused(await look(w.port, f"{path}/x", key), 404, "not_found_error")
        refused(await ask(w.port, path, {}, key), 400, "invalid_request_error")
        refused(await ask(w.port, path, b" " * 1001, key), 413, "request_too_large")

        def fails(*_: object) -> None:
            raise ZeroDivisionError

        monkeypatch.setattr("actors.frontend.adapters.Adapters.find", fails)
        body = {"model": "tiny", "max_tokens": 1, "messages": [{"role": "user", "content": "x"}]}
        refused(await ask(w.port, path, body, key), 500, "api_error")
        assert (await ask(w.port, CHAT, {})).error["code"] == "invalid_api_key"


async def test_every_route_needs_its_key() -> None:
    """But for those that are open to everybody; a client's key opens no administrator's route."""
    async with world(api_keys=("one",)) as w:
        for each in OPERATIONS:
            for token, refused in (
                ("", each.scope is not Scope.OPEN),
                ("two", each.scope is not Scope.OPEN),
                ("one", each.scope in (Scope.ADMIN, Scope.WATCH)),
            ):
                headers = [f"authorization: Bearer {token}"] if token else []
                if refused:
                    answer = await look(w.port, each.path.replace("{id}", "x"), *headers, method=each.method)
                    assert answer.status in ((401,) if each.scope is Scope.CLIENT else (401, 403)), each.path


async def test_keys() -> None:
    async with world(api_keys=("one", "two")) as w:
        paths = ["/v1/models", "/v1/responses/x", "/health_generate", "/nowhere"]
        bad = [[], ["authorization: Bearer three"], ["authorization: Basic one"], ["authorization: Bearer "]]
        bad.append(["authorization: Bearer one", "authorization: Bearer one"])
        for headers in bad:
            for path in paths:
                answer = await look(w.port, path, *headers)
                assert (answer.status, answer.error["code"]) == (401, "invalid_api_key")
                assert answer.headers["www-authenticate"] == "Bearer"
            assert (await ask(w.port, CHAT, chat_body(), *headers)).status == 401
        for key in ("one", "two"):
            assert (await look(w.port, "/v1/models", f"authorization: Bearer {key}")).status == 200
            assert (await look(w.port, "/v1/models", f"x-api-key: {key}")).status == 200
        assert (await look(w.port, "/v1/models", "x-api-key: three")).status == 401
        assert (await look(w.port, "/openapi.json")).json["paths"]["/v1/models"]["get"]["security"]
        assert (await look(w.port, "/version")).status == 200


async def test_client_ids_are_never_echoed() -> None:
    async with world() as w:
        answer = await look(w.port, "/version", "x-request-id: forged", "x-request-id: twice")
        assert answer.headers["x-request-id"].startswith("req_")


async def test_models() -> None:
    async with world() as w:
        answer = await look(w.port, "/v1/models")
        assert [model["id"] for model in answer.json["data"]] == ["tiny"]
        assert (await look(w.port, "/v1/models/tiny")).json["max_model_len"] == 512
        answer = await look(w.port, "/v1/models/../etc/passwd")
        assert (answer.status, answer.error["code"]) == (404, "model_not_found")
        assert json.dumps(answer.json).count("/nowhere") == 0
