"""Unmodified third-party clients, each in its own environment, against the demo model."""

from __future__ import annotations

import json
import pathlib
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from tests.contract.clients.environments import HERE, run_node, run_python
from tests.serving import Company, serving

pytestmark = pytest.mark.timeout(600)  # on a cold machine the environments are made first

SUM, OTHER = "12 + 30 = 42.", "20 + 3 = 23."
OWN = "the engine's environment"
Done = subprocess.CompletedProcess[str]


@pytest.fixture(scope="module")
def company() -> Iterator[Company]:
    with serving("--dtype", "float32") as running:
        yield running


def document(done: Done) -> Any:
    """What a client's script printed last; some clients print of their own accord before."""
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def openai_client(environment: str, script: str, company: Company) -> Any:
    """Run an openai script in an environment of its own, or in the engine's, whose versions differ."""
    if environment == OWN:
        command = (sys.executable, str(HERE / script), company.url, company.model)
        return document(subprocess.run(command, capture_output=True, text=True, timeout=240, check=False))
    return document(run_python(environment, script, company.url, company.model))


@pytest.mark.parametrize("environment", ["openai", OWN])
def test_openai_over_http(company: Company, environment: str) -> None:
    said = openai_client(environment, "openai_http.py", company)
    chat, responses, at_once = said["chat"], said["responses"], said["at_once"]
    assert chat["models"] == [company.model]
    assert chat["whole"] == chat["streamed"] == chat["helped"] == SUM
    assert chat["text"] and chat["request_id"].startswith("req_") and chat["length"] == "length"
    assert (responses["whole"], responses["continued"], responses["helped"]) == (SUM, OTHER, SUM)
    assert responses["cached"] > 0
    assert responses["numbers"] == list(range(len(responses["numbers"])))
    assert responses["rest"] == at_once["rest"] == responses["numbers"][6:]
    assert (responses["background"], responses["cancelled"]) == ("in_progress", "cancelled")
    assert responses["gone"] == ["NotFoundError", 404, "response_not_found", "response_id"]
    assert at_once["sums"] == [f"{n} + 3 = {n + 3}." for n in range(20, 28)]
    assert at_once["streamed"] == at_once["helped"] == SUM
    assert said["errors"] == {
        "model": ["NotFoundError", 404, "model_not_found", "model"],
        "range": ["BadRequestError", 400, None, "top_p"],
        "context": ["BadRequestError", 400, "context_length_exceeded", "prompt"],
        "previous": ["BadRequestError", 400, "previous_response_not_found", "previous_response_id"],
    }


@pytest.mark.parametrize("environment", ["openai", OWN])
def test_openai_over_the_websocket(company: Company, environment: str) -> None:
    said = openai_client(environment, "openai_websocket.py", company)
    assert said["chained"]["said"] == [SUM, OTHER]
    assert said["chained"]["cached"] > 0
    assert said["lanes"]["sums"] == {f"sum.{n}": f"2{n} + 3 = 2{n + 3}." for n in range(4)}
    assert said["lanes"]["refusal"] == ["error", "previous_response_not_found"]
    assert said["at_once"] == SUM


def test_openai_from_npm(company: Company, tmp_path: pathlib.Path) -> None:
    done = run_node(HERE / "node" / "openai.mjs", company.url, company.model, folder=tmp_path)
    said = document(done)
    assert said["chat"] == {"whole": SUM, "streamed": SUM, "helped": SUM}
    assert said["responses"]["text"] == said["responses"]["whole"] == OTHER
    rest = said["responses"]["rest"]
    assert rest == list(range(6, 6 + len(rest))) and rest
    assert said["socket"] == SUM
    assert said["refusal"] == ["NotFoundError", 404, "model_not_found"]


def test_openai_agents_over_its_websocket_model(company: Company) -> None:
    said = document(run_python("openai-agents", "agents_websocket.py", company.url, company.model))
    assert (said["first"], said["second"]) == (SUM, OTHER)
    assert {"response.created", "response.output_text.delta", "response.completed"} <= set(said["kinds"])
    assert said["remembered"] == 4
    assert said["tokens"] > 0


def test_litellm(company: Company) -> None:
    said = document(run_python("litellm", "litellm_chat.py", company.url, company.model))
    assert said["whole"] == said["streamed"] == said["async"] == SUM
    assert said["usage"][-1] > 0
    assert said["text"]
    assert "temperature" in said["refusal"]
    responses = said["responses"]
    for way in ("whole", "streamed", "async", "again"):
        assert responses[way] == SUM, way
    assert (responses["events"][0], responses["events"][-1]) == ("response.created", "response.completed")
    assert responses["continued"] == OTHER and responses["tokens"] > 0
    assert responses["items"] == ["user"] and responses["deleted"] is True
    assert "not found" in responses["gone"]


def test_langchain(company: Company) -> None:
    said = document(run_python("langchain-openai", "langchain_chat.py", company.url, company.model))
    assert said["whole"] == said["streamed"] == said["async"] == SUM
    assert said["response"] == said["response_streamed"] == SUM
    assert said["tokens"] == said["streamed_tokens"] > 0
    assert said["pieces"] > 3
    assert said["chain"] == OTHER
    assert said["batch"] == [SUM, OTHER]
