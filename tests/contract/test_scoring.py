"""What the forward over a prompt tells (logprobs, embeddings), against transformers, and while actors die."""

from __future__ import annotations

import base64
import itertools
import pathlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2
import numpy as np
import openai
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.serving import Company, serving

MODEL = pathlib.Path(__file__).resolve().parents[2] / "tools/demo/model"
TEXTS = [
    "def add(a, b):\n    return a + b\n" * 6,
    "What is 12 + 30?",
    "Once upon a time there was a house by the river, and in the house there lived a cat. " * 3,
]


@pytest.fixture(scope="module")
def company() -> Iterator[Company]:
    options = ("--dtype", "float32", "--chunk-size", "40", "--page-size", "4", "--max-running", "16")
    with serving(*options, model=str(MODEL)) as running:
        yield running


@pytest.fixture(scope="module")
def client(company: Company) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=company.url, api_key="none", max_retries=0, timeout=200) as made:
        yield made


class Reference:
    """transformers' own forward."""

    def __init__(self) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(MODEL)
        self.model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32)

    @torch.inference_mode()
    def run(self, text: str) -> tuple[list[int], np.ndarray, np.ndarray]:
        """Ids, log probabilities [T, vocab], final hidden states [T, hidden]."""
        ids = self.tokenizer(text).input_ids
        out = self.model(torch.tensor([ids]), output_hidden_states=True)
        return ids, out.logits[0].log_softmax(-1).numpy(), out.hidden_states[-1][0].numpy()


@pytest.fixture(scope="module")
def reference() -> Reference:
    return Reference()


def scored(client: openai.OpenAI, company: Company, text: str, **fields: Any) -> Any:
    return client.completions.create(
        model=company.model, prompt=text, temperature=0, echo=True, logprobs=3, **fields
    )


@pytest.mark.parametrize("text", TEXTS)
def test_an_echo_has_the_prompts_logprobs(
    client: openai.OpenAI, company: Company, reference: Reference, text: str
) -> None:
    ids, logprobs, _ = reference.run(text)
    for max_tokens in (0, 4):
        (choice,) = scored(client, company, text, max_tokens=max_tokens).choices
        found = choice.logprobs
        assert choice.text.startswith(text)
        assert len(found.tokens) == len(ids) + max_tokens
        assert found.token_logprobs[0] is None and found.top_logprobs[0] is None
        expected = [logprobs[i, token] for i, token in enumerate(ids[1:])]
        np.testing.assert_allclose(found.token_logprobs[1 : len(ids)], expected, atol=2e-3)
        best = np.sort(logprobs, axis=1)[:, ::-1]
        top = sorted(found.top_logprobs[1].values(), reverse=True)
        np.testing.assert_allclose(top, best[0, : len(top)], atol=2e-3)
        assert found.text_offset == sorted(found.text_offset)


def test_a_streamed_echo_says_the_same(client: openai.OpenAI, company: Company) -> None:
    (whole,) = scored(client, company, TEXTS[0], max_tokens=5).choices
    text, tokens, values, offsets = "", [], [], []
    for chunk in scored(client, company, TEXTS[0], max_tokens=5, stream=True):
        (choice,) = chunk.choices
        text += choice.text
        if choice.logprobs is not None:
            tokens += choice.logprobs.tokens
            values += choice.logprobs.token_logprobs
            offsets += choice.logprobs.text_offset
    assert (text, tokens, offsets) == (whole.text, whole.logprobs.tokens, whole.logprobs.text_offset)
    assert values[0] is None
    np.testing.assert_allclose(values[1:], whole.logprobs.token_logprobs[1:], atol=1e-3)


def test_prompt_logprobs_and_ids(client: openai.OpenAI, company: Company, reference: Reference) -> None:
    ids, logprobs, _ = reference.run(TEXTS[2])
    answer = client.completions.create(
        model=company.model,
        prompt=TEXTS[2],
        max_tokens=2,
        extra_body={"prompt_logprobs": 1, "return_token_ids": True},
    )
    choice = answer.choices[0].to_dict()
    assert choice["prompt_token_ids"] == ids and len(choice["token_ids"]) == 2
    assert choice["text"] and choice["logprobs"] is None
    first, *rest = choice["prompt_logprobs"]
    assert first is None and len(rest) == len(ids) - 1
    for i, (position, token) in enumerate(zip(rest, ids[1:], strict=True)):
        shown = position[str(token)]
        assert shown["logprob"] == pytest.approx(float(logprobs[i, token]), abs=2e-3)
        above = (
            (logprobs[i] > logprobs[i, token] + 2e-3).sum(),
            (logprobs[i] >= logprobs[i, token] - 2e-3).sum(),
        )
        assert above[0] + 1 <= shown["rank"] <= above[1]
        assert shown["rank"] == 1 or len(position) == 2
    chat = client.chat.completions.create(
        model=company.model,
        messages=[{"role": "user", "content": "Hello"}],
        max_tokens=1,
        extra_body={"prompt_logprobs": 0, "return_token_ids": True},
    ).to_dict()
    assert len(chat["prompt_logprobs"]) == len(chat["prompt_token_ids"]) == chat["usage"]["prompt_tokens"]


def pooled(states: np.ndarray, pooling: str) -> np.ndarray:
    return states[-1] if pooling == "last" else states.astype(np.float64).mean(0)


@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_embeddings_are_transformers_hidden_states(
    client: openai.OpenAI, company: Company, reference: Reference, pooling: str
) -> None:
    runs = [reference.run(text) for text in TEXTS]
    expected = [pooled(states, pooling) for _, _, states in runs]
    body = {"pooling": pooling, "normalize": False}
    for given in (TEXTS, [ids for ids, _, _ in runs]):
        answer = client.embeddings.create(model=company.model, input=given, extra_body=body)
        assert [each.index for each in answer.data] == [0, 1, 2]
        np.testing.assert_allclose([each.embedding for each in answer.data], expected, atol=2e-4)
        assert answer.usage.prompt_tokens == sum(len(ids) for ids, _, _ in runs)
    plain = client.embeddings.create(
        model=company.model, input=TEXTS[0], encoding_format="float", extra_body={"pooling": pooling}
    )
    unit = expected[0] / np.linalg.norm(expected[0])
    np.testing.assert_allclose(plain.data[0].embedding, unit, atol=1e-5)
    short = client.embeddings.create(
        model=company.model, input=TEXTS[0], dimensions=16, extra_body={"pooling": pooling}
    )
    cut = expected[0][:16] / np.linalg.norm(expected[0][:16])
    np.testing.assert_allclose(short.data[0].embedding, cut, atol=1e-5)


def test_embeddings_as_base64_and_bad_ones(company: Company) -> None:
    with httpx2.Client(base_url=company.url, timeout=60) as raw:
        body = {"model": company.model, "input": "Hello"}
        numbers = raw.post("/embeddings", json=body).json()["data"][0]["embedding"]
        text = raw.post("/embeddings", json={**body, "encoding_format": "base64"}).json()["data"][0][
            "embedding"
        ]
        assert np.frombuffer(base64.b64decode(text), "<f4").tolist() == pytest.approx(numbers, abs=1e-6)
        for fields, param in (
            ({"input": []}, "input"),
            ({"input": ""}, "input"),
            ({"input": [10**6]}, "input"),
            ({"dimensions": 0}, "dimensions"),
            ({"dimensions": 10**6}, "dimensions"),
            ({"encoding_format": "hex"}, "encoding_format"),
            ({"pooling": "max"}, "pooling"),
            ({"input": "a " * 5000}, "input"),
        ):
            answer = raw.post("/embeddings", json={**body, **fields})
            assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)
        many = raw.post("/embeddings", json={**body, "input": [f"number {i}" for i in range(150)]}).json()
        assert [each["index"] for each in many["data"]] == list(range(150))


def test_the_best_of_several(client: openai.OpenAI, company: Company) -> None:
    fields: dict[str, Any] = {"model": company.model, "prompt": "The", "max_tokens": 8, "seed": 3}
    every = client.completions.create(**fields, n=6, logprobs=0).choices
    means = sorted((np.mean(choice.logprobs.token_logprobs) for choice in every), reverse=True)
    best = client.completions.create(**fields, n=2, best_of=6, logprobs=0)
    found = [np.mean(choice.logprobs.token_logprobs) for choice in best.choices]
    np.testing.assert_allclose(found, means[:2], atol=1e-3)
    assert best.usage.completion_tokens == sum(len(choice.logprobs.tokens) for choice in every)
    assert client.completions.create(**fields, best_of=6).choices[0].logprobs is None
    for wrong in ({"best_of": 2, "n": 3}, {"best_of": 2, "stream": True}):
        with pytest.raises(openai.BadRequestError, match="best_of"):
            client.completions.create(**fields, **wrong)


def test_a_prompt_is_cut_where_the_client_says_so(
    client: openai.OpenAI, company: Company, reference: Reference
) -> None:
    def ask(text: str, keep: int) -> Any:
        return client.completions.create(
            model=company.model, prompt=text, max_tokens=5, extra_body={"truncate_prompt_tokens": keep}
        ).usage

    assert ask(TEXTS[0], 10).prompt_tokens == 10
    context = reference.model.config.max_position_embeddings
    assert ask("a b c d e " * context, -1).prompt_tokens == context - 5
    turns = [
        {"role": role, "content": "word " * 40}
        for _ in range(context // 20)
        for role in ("user", "assistant")
    ]
    request = {"model": company.model, "input": [*turns, {"role": "user", "content": "Hello"}]}
    with pytest.raises(openai.BadRequestError, match="maximum context"):
        client.responses.create(**request)
    answer = client.responses.create(**request, truncation="auto", max_output_tokens=50)
    assert context // 2 < answer.usage.input_tokens <= context - 50 and answer.truncation == "auto"


@pytest.mark.timeout(300)
def test_kills_change_nothing(client: openai.OpenAI, company: Company) -> None:
    """Scores and embeddings asked for in a crowd, while executor, scheduler and tokenizer are killed."""

    def ask(number: int) -> Any:
        text = TEXTS[number % 3] * 3
        if number % 2:
            body = {"pooling": "mean" if number % 4 == 1 else "last"}
            answer = client.embeddings.create(model=company.model, input=text, extra_body=body)
            return answer.data[0].embedding
        return scored(client, company, text, max_tokens=6).choices[0].logprobs.token_logprobs[1:]

    expected = [ask(number) for number in range(8)]
    with ThreadPoolExecutor(8) as crowd:
        for actor in itertools.islice(itertools.cycle(("executor.0", "scheduler.0", "tokenizer.0")), 4):
            running = [crowd.submit(ask, number) for number in range(8)]
            next(future for future in running).result(timeout=200)
            company.kill(actor)
            for future, wanted in zip(running, expected, strict=True):
                np.testing.assert_allclose(future.result(timeout=200), wanted, atol=2e-3)
    scheduler = company.actor("scheduler.0")
    assert scheduler["pages_owned"] == 0
