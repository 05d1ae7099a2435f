"""`/tokenize` and `/detokenize` against the model's own tokenizer, and while their actor is killed."""

from __future__ import annotations

import pathlib
import threading
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest
from tokenizers import Tokenizer

from tests.serving import Company, serving

TEXT = "def add(a, b):\n    return a + b  # naïve café 😀\n"


@pytest.fixture(scope="module")
def company() -> Iterator[Company]:
    with serving("--executor", "hash") as running:
        yield running


@pytest.fixture(scope="module")
def client(company: Company) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=company.url.removesuffix("/v1"), timeout=110) as made:
        yield made


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    root = pathlib.Path(__file__).resolve().parents[2]
    return Tokenizer.from_file(str(root / "tools/demo/model/tokenizer.json"))


def post(client: httpx2.Client, path: str, status: int = 200, **fields: Any) -> Any:
    answer = client.post(path, json=fields)
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    return answer.json()


def test_ids_are_the_tokenizers_own(client: httpx2.Client, company: Company, tokenizer: Tokenizer) -> None:
    for text in (TEXT, "", "a" * 20_000):
        for special in (True, False):
            ids = tokenizer.encode(text, add_special_tokens=special).ids
            found = post(client, "/tokenize", prompt=text, add_special_tokens=special)
            assert (found["tokens"], found["count"], found["token_strs"]) == (ids, len(ids), None)
            back = post(client, "/detokenize", tokens=ids, model=company.model, skip_special_tokens=True)
            assert back == {"prompt": tokenizer.decode(ids)}


def test_names_are_the_vocabularys_entries(client: httpx2.Client, tokenizer: Tokenizer) -> None:
    found = post(client, "/tokenize", prompt=TEXT, return_token_strs=True)
    assert found["token_strs"] == [tokenizer.id_to_token(token) for token in found["tokens"]]


def test_messages_are_counted_as_a_chat_counts_them(client: httpx2.Client, company: Company) -> None:
    messages = [{"role": "user", "content": "What is 12 + 30?"}]
    found = post(client, "/tokenize", messages=messages)
    chat = post(client, "/v1/chat/completions", model=company.model, messages=messages, max_tokens=1)
    assert found["count"] == chat["usage"]["prompt_tokens"]
    shorter = post(client, "/tokenize", messages=messages, add_generation_prompt=False)
    assert shorter["count"] < found["count"]


def test_refusals(client: httpx2.Client) -> None:
    for path, fields, status, param in (
        ("/tokenize", {}, 400, "prompt"),
        ("/tokenize", {"prompt": "a", "messages": []}, 400, "prompt"),
        ("/tokenize", {"messages": []}, 400, "messages"),
        ("/tokenize", {"prompt": "a", "model": "b"}, 404, "model"),
        ("/detokenize", {}, 400, "tokens"),
        ("/detokenize", {"tokens": [10**6]}, 400, "tokens"),
        ("/detokenize", {"tokens": [-1]}, 400, "tokens"),
    ):
        assert post(client, path, status, **fields)["error"]["param"] == param
    assert post(client, "/detokenize", tokens=[]) == {"prompt": ""}


@pytest.mark.timeout(300)
def test_an_answer_comes_though_the_tokenizer_is_killed(client: httpx2.Client, company: Company) -> None:
    wanted, stop = post(client, "/tokenize", prompt=TEXT), threading.Event()
    seen: list[int] = []
    errors: list[str] = []

    def ask() -> None:
        with httpx2.Client(base_url=client.base_url, timeout=110) as own:
            while not stop.is_set():
                answer = own.post("/tokenize", json={"prompt": TEXT})
                if answer.json() != wanted:
                    errors.append(answer.text)
                seen.append(answer.status_code)

    askers = [threading.Thread(target=ask) for _ in range(4)]
    for asker in askers:
        asker.start()
    for _ in range(2):
        company.kill("tokenizer.0")
        target = len(seen) + 20
        while len(seen) < target:
            stop.wait(0.05)
    stop.set()
    for asker in askers:
        asker.join(120)
    assert not errors
