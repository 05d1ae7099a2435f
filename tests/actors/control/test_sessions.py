"""Sessions of a real company: by HTTP, and over deaths."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest

from tests.keyfile import keyfile
from tests.serving import Company, serving
from tests.streams import admin_http, ask

FIRST, SECOND = list(range(5, 45)), list(range(50, 70))


@pytest.fixture(scope="module")
def company(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Company]:
    keys = keyfile(tmp_path_factory.mktemp("keys"), "a", "b")
    with serving("--executor", "hash", "--keys", str(keys)) as running:
        yield running


def generate(company: Company, key: str = "a", **fields: Any) -> tuple[int, Any]:
    """A greedy answer of some tokens: status and document."""
    sampling = {"max_new_tokens": 20, "temperature": 0, "ignore_eos": True, "sampling_seed": 1}
    return admin_http(company, "/generate", {"sampling_params": sampling, **fields}, key)


def answered(
    company: Company, ids: list[int], session: dict[str, Any] | None = None
) -> tuple[str, list[int]]:
    """The id and the tokens of an answer."""
    status, document = generate(company, input_ids=ids, **({"session_params": session} if session else {}))
    assert status == 200, document
    return document["meta_info"]["id"], document["output_ids"]


def opened(company: Company, **fields: Any) -> str:
    status, document = admin_http(company, "/open_session", {"capacity_of_str_len": 1000, **fields})
    assert status == 200 and isinstance(document, str), "the id alone, as tools expect"
    return document


@pytest.mark.parametrize("actor", ["", "scheduler.0", "frontend.0", "tokenizer.0", "executor.0"])
def test_a_request_goes_on_where_another_ended(company: Company, actor: str) -> None:
    """Whoever has died in between."""
    session = opened(company)
    rid, first = answered(company, FIRST, {"id": session})
    if actor:
        before = company.actor(actor)["incarnation"]
        company.kill(actor)
        assert before
    whole = [*FIRST, *first]
    again, second = answered(company, SECOND, {"id": session, "rid": rid})
    assert second == answered(company, [*whole, *SECOND])[1] and again != rid
    for how, known in (
        ({"rid": again}, [*whole, *SECOND, *second]),
        ({"rid": rid, "offset": 50}, whole[:50]),
        ({"rid": rid, "offset": -5}, whole[:-5]),
        ({"rid": rid, "drop_previous_output": True}, FIRST),
        ({}, []),
    ):
        assert answered(company, [9], {"id": session, **how})[1] == answered(company, [*known, 9])[1], how
    assert admin_http(company, "/close_session", {"session_id": session})[0] == 200
    assert generate(company, input_ids=[9], session_params={"id": session})[0] == 404


def test_what_a_session_holds_is_cached(company: Company) -> None:
    session = opened(company)
    rid, _ = answered(company, FIRST, {"id": session})
    status, document = generate(company, input_ids=SECOND, session_params={"id": session, "rid": rid})
    assert status == 200 and document["meta_info"]["cached_tokens"] >= len(FIRST) // 16 * 16
    ask(company, "session.close", id=session)


def test_a_stream_has_been_kept_when_it_ends(company: Company) -> None:
    session, ids = opened(company), list[str]()
    for _ in range(3):
        how = {"id": session, **({"rid": ids[-1]} if ids else {})}
        text = _streamed(company, {"input_ids": SECOND, "session_params": how, "stream": True})
        assert text[-1] == "[DONE]"
        last = json.loads(text[-2])
        assert last["meta_info"]["finish_reason"]["type"] == "length"
        ids.append(last["meta_info"]["id"])
    (found,) = ask(company, "session.list")["sessions"]
    assert (found["requests"], found["tokens"], found["owner"]) == (3, 3 * 40, "a")
    ask(company, "session.close", id=session)


def _streamed(company: Company, body: dict[str, Any]) -> list[str]:
    sampling = {"max_new_tokens": 20, "temperature": 0, "ignore_eos": True}
    request = urllib.request.Request(
        f"http://{company.host}:{company.port}/generate",
        json.dumps({"sampling_params": sampling, **body}).encode(),
        {"content-type": "application/json", "authorization": "Bearer a"},
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        return [line[6:].strip().decode() for line in answer if line.startswith(b"data: ")]


def test_text(company: Company) -> None:
    session = opened(company)
    status, one = generate(company, text="Once upon a time", session_params={"id": session})
    assert status == 200
    rid = one["meta_info"]["id"]
    status, two = generate(company, text=" there was", session_params={"id": session, "rid": rid})
    assert status == 200
    added = admin_http(company, "/tokenize", {"prompt": " there was", "add_special_tokens": False}, "a")[1][
        "count"
    ]
    assert two["meta_info"]["prompt_tokens"] == one["meta_info"]["prompt_tokens"] + 20 + added
    ask(company, "session.close", id=session)


def test_refusals(company: Company) -> None:
    session = opened(company, session_id="mine", capacity_of_str_len=100)
    assert admin_http(company, "/open_session", {"session_id": "mine"})[0] == 409
    assert admin_http(company, "/open_session", {"capacity_of_str_len": 0})[0] == 400
    assert admin_http(company, "/open_session", {}, key="a")[0] == 403
    assert admin_http(company, "/close_session", {"session_id": "nobody's"})[0] == 404
    rid, _ = answered(company, FIRST, {"id": session})
    for status, fields in (
        (404, {"session_params": {"id": "nobody's"}}),
        (404, {"session_params": {"id": session, "rid": "nobody's"}}),
        (400, {"session_params": {"id": session, "rid": rid, "offset": 61}}),
        (400, {"session_params": {"rid": rid}}),
        (400, {"session_params": {"id": session, "rid": 5}}),
        (400, {"session_params": {"id": session}, "sampling_params": {"n": 2}}),
        (400, {"session_params": {"id": session}, "input_ids": [[1], [2]]}),
        (404, {"session_params": {"id": session, "rid": rid}, "key": "b"}),
        (409, {"session_params": {"id": session, "rid": rid}, "input_ids": [*FIRST, 1]}),
    ):
        found, document = generate(company, **{"input_ids": [1], **fields})
        assert found == status, (fields, document)
    assert "holds 60 of 100 tokens" in document["error"]["message"]
    how = {"id": session, "replace": True}
    wrong = {"sampling_params": {"max_new_tokens": 20, "temperature": -1}, "session_params": how}
    assert generate(company, input_ids=[1], **wrong)[0] == 400
    status, document = generate(
        company, input_ids=[1], session_params={"id": session}, sampling_params={"max_new_tokens": 1 << 31}
    )
    assert (status, document["error"]["code"]) == (409, "conflict")
    assert answered(company, [1], {"id": session, "rid": rid}), "nothing is forgotten for what is refused"
    assert answered(company, [*FIRST, 1], how), "what it holds may give way"
    assert ask(company, "session.list")["sessions"][0]["requests"] == 1
    ask(company, "session.close", id=session)
