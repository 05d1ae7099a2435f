"""Bodies are read strictly, and what is wrong is said with the field's name."""

from __future__ import annotations

import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols.errors import ErrorBody, UserError
from protocols.openai.body import MAX_DEPTH, check_depth, error_document, read_body
from protocols.openai.chat import ChatRequest
from protocols.openai.completions import CompletionRequest

CHAT = msgspec.json.Decoder(ChatRequest)
TEXT = msgspec.json.Decoder(CompletionRequest)
OK = '{"model":"m","messages":[{"role":"user","content":"x"}]'

BAD = {
    "empty": ("", None, "invalid_json"),
    "cut": (OK, None, "invalid_json"),
    "rest": (OK + "} x", None, "invalid_json"),
    "bom": ("\ufeff" + OK + "}", None, "invalid_json"),
    "array": ("[]", None, "invalid_type"),
    "null": ("null", None, "invalid_type"),
    "NaN": (OK + ',"temperature":NaN}', None, "invalid_json"),
    "NaN unknown": (OK + ',"x":[NaN]}', None, "invalid_json"),
    "infinity": (OK + ',"temperature":1e999}', "temperature", "invalid_type"),
    "deep": (OK + ',"x":' + "[" * 100_000 + "]" * 100_000 + "}", None, "invalid_json"),
    "twice": (OK + ',"model":"n"}', "model", "invalid_json"),
    "twice inside": (OK + ',"x":{"a":1,"a":2}}', "a", "invalid_json"),
    "surrogate": (OK + ',"user":"\\ud800"}', None, "invalid_json"),
    "control": (OK + ',"user":"\n"}', None, "invalid_json"),
    "missing": ('{"model":"m"}', "messages", "missing_required_parameter"),
    "missing inside": ('{"model":"m","messages":[{}]}', "messages[0].role", "missing_required_parameter"),
    "text for number": (OK + ',"max_tokens":"5"}', "max_tokens", "invalid_type"),
    "float for int": (OK + ',"max_tokens":1.5}', "max_tokens", "invalid_type"),
    "bool for int": (OK + ',"n":true}', "n", "invalid_type"),
    "huge int": (OK + ',"seed":' + "9" * 400 + "}", "seed", "invalid_type"),
    "number for text": (OK + ',"stop":[1]}', "stop[0]", "invalid_type"),
    "object for list": ('{"model":"m","messages":{}}', "messages", "invalid_type"),
    "bias key": (OK + ',"logit_bias":{"a":1}}', "logit_bias", "invalid_type"),
    "bias value": (OK + ',"logit_bias":{"1":"a"}}', "logit_bias[...]", "invalid_type"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_bodies(name: str) -> None:
    body, param, code = BAD[name]
    with pytest.raises(UserError) as caught:
        read_body(CHAT, body.encode())
    assert (caught.value.body.status, caught.value.body.param, caught.value.body.code) == (400, param, code)
    assert caught.value.body.message.endswith((".", "'"))


def test_bad_utf_8_anywhere() -> None:
    for field in ("user", "unknown"):
        with pytest.raises(UserError, match="UTF-8"):
            read_body(CHAT, f'{OK},"{field}":"'.encode() + b'\xff"}')


def test_sentences_are_for_people() -> None:
    with pytest.raises(UserError, match=r"^Invalid value for 'max_tokens': expected int, got str\.$"):
        read_body(CHAT, OK + ',"max_tokens":"5"}')
    with pytest.raises(UserError, match=r"^Missing required parameter: 'messages'\.$"):
        read_body(CHAT, '{"model":"m"}')


def test_unknown_fields_and_nulls_are_fine() -> None:
    request = read_body(CHAT, OK + ',"made_up":{"a":[1]},"stop":null,"temperature":1}')
    assert request.temperature == 1.0 and request.stop is None


@pytest.mark.parametrize("prompt", ["text", ["a", "b"], [1, 2], [[1], [2, 3]], []])
def test_prompts_of_every_shape(prompt: object) -> None:
    assert read_body(TEXT, json.dumps({"model": "m", "prompt": prompt})).prompt == prompt


def test_depth_of_free_form_values() -> None:
    deep: object = {"a": 1}
    for _ in range(MAX_DEPTH - 2):
        deep = [deep]
    check_depth(deep, "x")
    with pytest.raises(UserError, match="nested"):
        check_depth([deep], "x")
    check_depth([[]] * 1000, "x", limit=2)


def test_error_document() -> None:
    body = ErrorBody(400, "No.", code="c", param="p")
    assert json.loads(error_document(body)) == {
        "error": {"message": "No.", "type": "invalid_request_error", "param": "p", "code": "c"}
    }


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.text(),
        lambda c: st.lists(c) | st.dictionaries(st.text(), c),
    )
)
def test_any_json_is_read_or_refused(value: object) -> None:
    try:
        read_body(CHAT, json.dumps(value).encode())
    except UserError as error:
        assert error.body.status == 400


@given(st.binary(max_size=200))
def test_any_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(UserError):
        read_body(CHAT, data)
