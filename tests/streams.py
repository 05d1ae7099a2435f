"""Clients of a real company that read in threads, and its administrative HTTP names."""

from __future__ import annotations

import json
import threading
import urllib.error
import urllib.request
from typing import Any

from runtime import admin
from tests.serving import Company


class Stream:
    """A completion that is read in a thread, from the moment it is made."""

    def __init__(
        self, company: Company, prompt: str = "on and on", tokens: int = 120, *, key: str = "", **fields: Any
    ) -> None:
        self.text, self.finish, self.status, self.id = "", "", 0, ""
        self._begun = threading.Event()
        body = {
            "model": company.model,
            "prompt": prompt,
            "max_tokens": tokens,
            "ignore_eos": True,
            "seed": 7,
            "stream": True,
            **fields,
        }
        self._request = _request(company, "/v1/completions", body, key)
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def begun(self) -> Stream:
        """The stream, once its first text has come."""
        assert self._begun.wait(60)
        return self

    def done(self) -> tuple[str, str]:
        """Its text, and why it ended."""
        self.join()
        assert self.status == 200, self.text
        return self.text, self.finish

    def join(self) -> None:
        """Wait for its end, or its refusal: then `text` is the error document."""
        self._thread.join(240)
        assert not self._thread.is_alive()

    def _read(self) -> None:
        try:
            self._follow()
        except urllib.error.HTTPError as error:
            self.status, self.text = error.code, error.read().decode()

    def _follow(self) -> None:
        with urllib.request.urlopen(self._request, timeout=240) as answer:
            self.status, self.id = answer.status, answer.headers["x-request-id"]
            for line in answer:
                if line.startswith(b"data: {"):
                    choice = json.loads(line[6:])["choices"][0]
                    self.text += choice["text"]
                    self.finish = choice["finish_reason"] or self.finish
                    self._begun.set()


def ask(company: Company, verb: str, **fields: Any) -> dict[str, Any]:
    """An administrator's verb, without the time that a command takes to start."""
    return admin.ask(admin.address(company.name), {"verb": verb, **fields}, timeout=60)


def paused_amid(company: Company, mode: str, tokens: int = 400, *, key: str = "") -> Stream:
    """A stream that was amid its answer when generation paused. Where a busy machine let it end before the
    order came, another is begun."""
    for _ in range(20):
        stream = Stream(company, tokens=tokens, key=key).begun()
        paused = ask(company, "engine.pause", mode=mode)
        if paused["running"] + paused["waiting"]:
            assert paused["mode"] == mode
            return stream
        ask(company, "engine.resume")
        stream.done()
    raise AssertionError("every stream ended before generation could be paused")


def admin_http(
    company: Company, path: str, body: Any = None, key: str = "boss"
) -> tuple[int, dict[str, Any]]:
    """POST `body` (GET without one) with an administrator's key: status and document."""
    try:
        with urllib.request.urlopen(_request(company, path, body, key), timeout=60) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def _request(company: Company, path: str, body: Any, key: str) -> urllib.request.Request:
    headers = {"content-type": "application/json"} | ({"authorization": f"Bearer {key}"} if key else {})
    data = None if body is None else json.dumps(body).encode()
    return urllib.request.Request(f"http://{company.host}:{company.port}{path}", data, headers)


class Generation:
    """An answer of `/generate` that is read in a thread: its tokens, and the weights that made them."""

    def __init__(self, company: Company, prompt: list[int], tokens: int, *, key: str = "") -> None:
        self.ids: list[int] = []
        self.versions: list[str] = []
        self.finish = ""
        self._begun = threading.Event()
        sampling = {"max_new_tokens": tokens, "ignore_eos": True, "temperature": 0, "sampling_seed": 1}
        body = {"input_ids": prompt, "sampling_params": sampling, "stream": True}
        self._request = _request(company, "/generate", body, key)
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def begun(self) -> Generation:
        """Itself, once its first token has come."""
        assert self._begun.wait(120)
        return self

    def done(self) -> Generation:
        """Itself, once it has ended."""
        self._thread.join(240)
        assert not self._thread.is_alive()
        return self

    def _read(self) -> None:
        with urllib.request.urlopen(self._request, timeout=240) as answer:
            for line in answer:
                if line.startswith(b"data: {"):
                    document = json.loads(line[6:])
                    meta = document["meta_info"]
                    self.ids, self.versions = document["output_ids"], meta.get("weight_versions", [])
                    self.finish = (meta["finish_reason"] or {}).get("type", self.finish)
                    self._begun.set()


def completion_id(company: Company, key: str = "") -> str:
    """The x-request-id of a completion that has ended."""
    body = {"model": company.model, "prompt": "once", "max_tokens": 4, "ignore_eos": True}
    with urllib.request.urlopen(_request(company, "/v1/completions", body, key), timeout=60) as answer:
        answer.read()
        return str(answer.headers["x-request-id"])
