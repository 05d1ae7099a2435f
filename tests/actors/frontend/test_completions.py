"""Completions over real sockets: every shape of prompt, batches, and what the engine is told."""

from __future__ import annotations

import array
from typing import Any

import openai
import pytest
import trio

from protocols.request import TextPrompt, TokenPrompt
from tests.actors.frontend.harness import Raw, ask, world

TEXT = "/v1/completions"


def body(prompt: Any = "one two three", **fields: Any) -> dict[str, Any]:
    return {"model": "tiny", "prompt": prompt, **fields}


def ids(*tokens: int) -> TokenPrompt:
    return TokenPrompt(array.array("i", tokens).tobytes())


@pytest.mark.parametrize(
    ("prompt", "prompts"),
    [
        ("a b", [TextPrompt("a b")]),
        (["a", "b c"], [TextPrompt("a"), TextPrompt("b c")]),
        ([1, 2, 3], [ids(1, 2, 3)]),
        ([[1], [2, 999]], [ids(1), ids(2, 999)]),
        ([[1], "b"], [ids(1), TextPrompt("b")]),
    ],
)
async def test_prompts(prompt: Any, prompts: list[Any]) -> None:
    async with world() as w:
        answer = await ask(w.port, TEXT, body(prompt))
        assert answer.status == 200
        assert [generate.prompt for generate in w.engine.generates] == prompts
        assert [choice["index"] for choice in answer.json["choices"]] == list(range(len(prompts)))


async def test_a_batch_numbers_its_choices_prompt_by_prompt() -> None:
    async with world() as w:
        document = (await ask(w.port, TEXT, body(["a", "b c"], n=2))).json
        assert [choice["text"] for choice in document["choices"]] == ["a", "a#1", "b c", "b#1 c#1"]
        assert document["usage"] == {
            "prompt_tokens": 14,
            "completion_tokens": 6,
            "total_tokens": 20,
            "prompt_tokens_details": {"cached_tokens": 6},
        }
        await w.all_free()


async def test_logprobs_ids_and_length() -> None:
    async with world() as w:
        answer = await ask(w.port, TEXT, body(logprobs=1, return_token_ids=True, max_tokens=2))
        (choice,) = answer.json["choices"]
        assert choice == {
            "index": 0,
            "text": "one two",
            "logprobs": {
                "tokens": ["one", " two"],
                "token_logprobs": [-0.5, -0.5],
                "top_logprobs": [{"t0": 0.0}, {"t0": 0.0}],
                "text_offset": [0, 3],
            },
            "finish_reason": "length",
            "stop_reason": None,
            "token_ids": [0, 1],
        }


async def test_what_the_engine_is_told() -> None:
    async with world() as w:
        fields = {
            "temperature": 0.5,
            "top_p": 0.9,
            "top_k": -1,
            "min_p": 0.1,
            "repetition_penalty": 1.1,
            "presence_penalty": 0.2,
            "frequency_penalty": 0.3,
            "seed": 7,
            "min_tokens": 1,
            "ignore_eos": True,
            "stop": ["x", "y"],
            "stop_token_ids": [5],
            "logit_bias": {"3": -1},
            "include_stop_str_in_output": True,
            "skip_special_tokens": False,
            "echo": True,
            "cache_salt": "tenant",
            "priority": -3,
        }
        trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
        assert (await ask(w.port, TEXT, body(**fields), f"traceparent: {trace}")).status == 200
        (generate,) = w.engine.generates
        sampling, output = generate.sampling, generate.output
        assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p) == (0.5, 0.9, 0, 0.1)
        assert (sampling.repetition_penalty, sampling.presence_penalty) == (1.1, 0.2)
        assert (sampling.frequency_penalty, sampling.seed, sampling.max_tokens) == (0.3, 7, None)
        assert generate.default_tokens == 16
        assert (sampling.min_tokens, sampling.ignore_eos, sampling.stop_token_ids) == (1, True, (5,))
        assert sampling.logit_bias == ((3, -1.0),) and sampling.logprobs is None
        assert (output.stop, output.include_stop, output.skip_special) == (("x", "y"), True, False)
        assert output.echo and not output.token_ids
        assert (generate.salt, generate.priority) == ("tenant", -3)
        assert generate.trace.startswith(trace[:35]) and generate.trace != trace


async def test_streams() -> None:
    async with world() as w:
        raw = await Raw.connect(w.port)
        await raw.post(TEXT, body(["a b", "c"], stream=True))
        await raw.until(b"\r\n\r\n")
        said, finished = ["", ""], 0
        while (chunk := await raw.event()) is not None:
            (choice,) = chunk["choices"]
            said[choice["index"]] += choice["text"]
            finished += choice["finish_reason"] is not None
        assert said == ["a b", "c"] and finished == 2
        await raw.get("/version")
        await raw.until(b"0\r\n\r\n")
        assert (await raw.answer()).status == 200
        await raw.aclose()


async def test_openai_client() -> None:
    def talk(url: str) -> tuple[str, str]:
        with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
            whole = client.completions.create(model="tiny", prompt="one two", n=2)
            stream = client.completions.create(model="tiny", prompt="one two", stream=True)
            return whole.choices[1].text, "".join(chunk.choices[0].text for chunk in stream)

    async with world() as w:
        assert await trio.to_thread.run_sync(talk, w.url) == ("one#1 two#1", "one two")


async def test_openai_client_sees_our_errors_as_its_own() -> None:
    def talk(url: str) -> list[str]:
        seen: list[str] = []
        with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
            for model, top_p in (("other", 1.0), ("tiny", 7.0)):
                try:
                    client.completions.create(model=model, prompt="x", top_p=top_p)
                except openai.APIStatusError as error:
                    seen.append(f"{type(error).__name__} {error.param}")
        return seen

    async with world() as w:
        seen = await trio.to_thread.run_sync(talk, w.url)
        assert seen == ["NotFoundError model", "BadRequestError top_p"]
