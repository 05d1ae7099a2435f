"""Clients that stream, come back when they are cut off, and keep a receipt of all they saw."""

from __future__ import annotations

import dataclasses
from typing import Any

import trio

from tools.chaos.http import Broken, Refusal, request

RETRIES = 60
"""Times a client comes back before it calls its request lost."""
RETRY_SECONDS = 0.1


@dataclasses.dataclass
class Receipt:
    """What one client saw. numbers: sequence numbers of the Responses events. texts: by choice.
    arrivals: when text came (Trio's clock). tokens: by the server's usage. resumes: times it came back."""

    index: int
    kind: str
    texts: dict[int, str] = dataclasses.field(default_factory=dict)
    logprobs: list[Any] = dataclasses.field(default_factory=list)
    numbers: list[int] = dataclasses.field(default_factory=list)
    finishes: list[str] = dataclasses.field(default_factory=list)
    arrivals: list[float] = dataclasses.field(default_factory=list)
    tokens: int = 0
    cached: int = 0
    resumes: int = 0
    restarts: int = 0
    error: str = ""

    def say(self, choice: int, text: str) -> None:
        """Text has come."""
        self.texts[choice] = self.texts.get(choice, "") + text
        self.arrivals.append(trio.current_time())


async def respond(host: str, port: int, body: dict[str, Any], index: int) -> Receipt:
    """Stream one response over HTTP; cut off, resume it by its id and the last sequence number seen."""
    receipt = Receipt(index, "responses")
    response_id = cause = path = ""
    for _ in range(RETRIES):
        try:
            method, path, document = _where(response_id, receipt, body)
            async with request(host, port, method, path, document) as answer:
                while (event := await answer.event()) is not None:
                    response_id = event.get("response", {}).get("id", response_id)
                    if _take(event, receipt):
                        return receipt
                cause = "the stream ended early"
        except Broken as broken:
            cause = str(broken)
        except Refusal as refusal:
            cause = str(refusal)
            if refusal.status != 503:
                receipt.error = str(refusal)
                return receipt
        receipt.resumes += bool(response_id)
        await trio.sleep(RETRY_SECONDS)
    receipt.error = f"lost after {RETRIES} tries to get {path}: {cause}"
    return receipt


def _where(
    response_id: str, receipt: Receipt, body: dict[str, Any]
) -> tuple[str, str, dict[str, Any] | None]:
    if not response_id:
        return "POST", "/v1/responses", body
    after = receipt.numbers[-1] if receipt.numbers else -1
    return "GET", f"/v1/responses/{response_id}?stream=true&starting_after={after}", None


def _take(event: dict[str, Any], receipt: Receipt) -> bool:
    """Note one event; True when it ends the response."""
    receipt.numbers.append(event["sequence_number"])
    match event["type"]:
        case "response.output_text.delta":
            receipt.say(0, event["delta"])
        case "response.completed" | "response.incomplete":
            receipt.finishes.append(event["type"])
            receipt.tokens = event["response"]["usage"]["output_tokens"]
            return True
        case "response.failed" | "error":
            receipt.error = str(event)[:300]
            return True
        case _:
            pass
    return False


async def chat(host: str, port: int, body: dict[str, Any], index: int) -> Receipt:
    """Stream one chat completion. The protocol has no way to resume: cut off, the client asks again."""
    restarts = 0
    for _ in range(RETRIES):
        receipt = Receipt(index, "chat", restarts=restarts)
        try:
            async with request(host, port, "POST", "/v1/chat/completions", body) as answer:
                while (chunk := await answer.event()) is not None:
                    _chunk(chunk, receipt)
            return receipt
        except Broken:
            restarts += 1
        except Refusal as refusal:
            if refusal.status != 503:
                receipt.error = str(refusal)
                return receipt
        await trio.sleep(RETRY_SECONDS)
    receipt.error = f"lost after {RETRIES} tries"
    return receipt


def _chunk(chunk: dict[str, Any], receipt: Receipt) -> None:
    if "error" in chunk:
        receipt.error = str(chunk["error"])
        return
    for choice in chunk["choices"]:
        if choice["delta"].get("content"):
            receipt.say(choice["index"], choice["delta"]["content"])
        if choice.get("logprobs"):
            receipt.logprobs += choice["logprobs"]["content"] or []
        if choice["finish_reason"]:
            receipt.finishes.append(f"{choice['index']}:{choice['finish_reason']}")
    if chunk.get("usage"):
        receipt.tokens = chunk["usage"]["completion_tokens"]
