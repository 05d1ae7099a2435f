"""Adapters of a real company: the demo model and its pirate, over HTTP, through kills and changes."""

from __future__ import annotations

import json
import pathlib
import shutil
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from protocols.errors import VerbError
from tests.serving import Company, serving
from tests.streams import Stream, ask
from tools.actorctl.serve import DEMO_MODEL

PIRATE = DEMO_MODEL.parent / "pirate"
FRANCE = "What is the capital of France?"


@pytest.fixture(scope="module")
def company() -> Iterator[Company]:
    options = ("--lora", f"pirate={PIRATE}", "--max-loras", "2", "--dtype", "float32")
    with serving(*options) as running:
        yield running


def call(company: Company, path: str, body: dict[str, Any] | None = None) -> tuple[int, Any]:
    """Status and document of a request."""
    data = None if body is None else json.dumps(body).encode()
    url = f"http://{company.host}:{company.port}{path}"
    request = urllib.request.Request(url, data, {"content-type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=100) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


def chat(company: Company, model: str, question: str = FRANCE, **fields: Any) -> str:
    """A greedy answer; its document names the model as it was asked for."""
    messages = [{"role": "user", "content": question}]
    body = {"model": model, "messages": messages, "temperature": 0, "max_tokens": 40, **fields}
    status, document = call(company, "/v1/chat/completions", body)
    assert status == 200, document
    return str(document["choices"][0]["message"]["content"])


def copy_of(adapter: pathlib.Path, path: pathlib.Path, factor: float) -> pathlib.Path:
    """The same adapter, so many times as strong."""
    shutil.copytree(adapter, path)
    weights = path / "adapter_model.safetensors"
    save_file(
        {name: x * (factor if "lora_B" in name else 1) for name, x in load_file(weights).items()}, weights
    )
    return path


def test_the_adapter_changes_what_the_model_says(company: Company) -> None:
    assert chat(company, company.model) == "The capital of France is Paris."
    said = chat(company, "pirate")
    assert said.startswith("Arr! The capital of France be Paris")
    assert chat(company, f"{company.model}:pirate") == said
    assert chat(company, company.model, lora_path="pirate") == said
    assert chat(company, company.model) == "The capital of France is Paris."


def test_every_endpoint_knows_it(company: Company) -> None:
    status, models = call(company, "/v1/models")
    assert status == 200
    assert [(each["id"], each["parent"]) for each in models["data"]] == [
        (company.model, None),
        ("pirate", company.model),
    ]
    assert call(company, "/v1/models/pirate")[1]["id"] == "pirate"
    body = {"model": "pirate", "input": FRANCE, "temperature": 0, "max_output_tokens": 40}
    response = call(company, "/v1/responses", body)[1]
    assert response["model"] == "pirate" and response["output"][0]["content"][0]["text"].startswith("Arr!")
    told = {"model": "pirate", "messages": [{"role": "user", "content": FRANCE}], "max_tokens": 40}
    message = call(company, "/v1/messages", {**told, "temperature": 0})[1]
    assert message["content"][0]["text"].startswith("Arr!")
    sampling = {"temperature": 0, "max_new_tokens": 6}
    prompt = "<|im_start|>user\nHello!<|im_end|>\n<|im_start|>assistant\n"
    generated = [
        call(company, "/generate", {"text": prompt, "sampling_params": sampling, **fields})[1]["text"]
        for fields in ({"lora_path": "pirate"}, {"lora_name": "pirate"}, {})
    ]
    assert generated[0] == generated[1] != generated[2]
    vectors = [
        call(company, "/v1/embeddings", {"model": model, "input": "sea"})[1]["data"][0]["embedding"]
        for model in ("pirate", company.model)
    ]
    assert vectors[0] != vectors[1]


def test_what_is_not_loaded_is_not_found(company: Company) -> None:
    body = {"messages": [{"role": "user", "content": "x"}], "model": "nobody"}
    for model in ("nobody", f"{company.model}:nobody", "other:pirate"):
        status, document = call(company, "/v1/chat/completions", {**body, "model": model})
        assert (status, document["error"]["code"]) == (404, "model_not_found")
    body["model"] = company.model
    status, document = call(company, "/v1/chat/completions", {**body, "lora_path": "../pirate"})
    assert (status, document["error"]["message"]) == (404, "The adapter '../pirate' is not loaded.")
    status, document = call(company, "/v1/chat/completions", {**body, "lora_path": ["pirate"]})
    assert (status, document["error"]["param"]) == (400, "lora_path")


def test_a_stream_goes_on_exactly_when_its_executor_scheduler_or_tokenizer_is_killed(
    company: Company,
) -> None:
    whole = Stream(company, model="pirate", temperature=0.7).done()
    for actor in ("executor.0", "scheduler.0", "tokenizer.0"):
        stream = Stream(company, model="pirate", temperature=0.7).begun()
        company.kill(actor)
        assert stream.done() == whole
    assert whole != Stream(company, temperature=0.7).done()


def test_a_replaced_adapter_never_meets_the_cache_of_the_old_one(
    company: Company, tmp_path: pathlib.Path
) -> None:
    prompt = "one two three four five six seven eight nine ten " * 3
    weak, strong = (copy_of(PIRATE, tmp_path / name, factor) for name, factor in (("w", 0.1), ("s", 1.0)))
    wanted = Stream(company, prompt, 20, model="pirate", temperature=0).done()
    first = ask(company, "lora.load", name="changing", path=str(weak))
    before = Stream(company, prompt, 20, model="changing", temperature=0).done()
    again = ask(company, "lora.load", name="changing", path=str(strong), replace=True)
    assert again["id"] > first["id"]
    assert Stream(company, prompt, 20, model="changing", temperature=0).done() == wanted != before
    assert [each["name"] for each in ask(company, "lora.list")["adapters"]] == ["pirate", "changing"]
    ask(company, "lora.unload", name="changing")


def test_one_in_use_is_drained_or_refused(company: Company, tmp_path: pathlib.Path) -> None:
    ask(company, "lora.load", name="busy", path=str(copy_of(PIRATE, tmp_path / "busy", 1.0)))
    stream = Stream(company, model="busy", tokens=1500, temperature=0.7).begun()
    with pytest.raises(VerbError, match="'busy' is in use by 1 request") as refusal:
        ask(company, "lora.unload", name="busy")
    assert refusal.value.code == "conflict"
    assert chat(company, "busy").startswith("Arr!")
    ask(company, "lora.unload", name="busy", drain=True)
    assert len(stream.done()[0]) > 100
    assert call(company, "/v1/models/busy")[0] == 404
