"""One answer over the Responses WebSocket: asked for, streamed, and taken up where a server process died."""

from __future__ import annotations

import dataclasses
import http.client
import json
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Any

from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus
from websockets.sync.client import connect

from protocols.errors import TroupeError, several

PATIENCE = 30.0
"""Seconds without an event after which a server that cannot be reached is given up."""
RETRY_SECONDS = 0.2
_BUSY = 503
_TERMINAL = ("response.completed", "response.incomplete", "response.failed")


class Refused(TroupeError):
    """The server will not do it; its sentence."""


class Gone(TroupeError):
    """Nobody answers there."""


@dataclasses.dataclass(frozen=True)
class Server:
    """Where to ask. url: without the `/v1`; key: "" for none; trust: certificates, not the system's."""

    url: str
    key: str = ""
    trust: str | None = None

    @property
    def headers(self) -> dict[str, str]:
        """What every request carries."""
        return {"authorization": f"Bearer {self.key}"} if self.key else {}

    @property
    def tls(self) -> ssl.SSLContext | None:
        """How the server's certificate is checked; None for plain HTTP."""
        secure = self.url.startswith("https:")
        return ssl.create_default_context(cafile=self.trust) if secure else None

    def models(self) -> list[str]:
        """The ids of the models that are served. Raises Refused, Gone."""
        try:
            request = urllib.request.Request(f"{self.url}/v1/models", headers=self.headers)
            handlers = [urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=self.tls)]
            with urllib.request.build_opener(*handlers).open(request, timeout=PATIENCE) as answer:
                return [card["id"] for card in json.load(answer)["data"]]
        except urllib.error.HTTPError as error:
            raise Refused(_sentence(error.read(), error.code)) from error
        except OSError as error:
            raise Gone(f"nobody answers at {self.url}: {getattr(error, 'reason', error)}.") from error
        except (http.client.HTTPException, ValueError, LookupError, TypeError) as error:
            raise Refused(f"{self.url} does not answer as a model server does.") from error


@dataclasses.dataclass
class Answer:
    """What has come of one response. request: the body that asks for it. number: of the last event.
    asked, last: when it was asked for and when its latest text came, in seconds; 0: not yet."""

    request: dict[str, Any]
    text: str = ""
    id: str = ""
    number: int = -1
    over: bool = False
    usage: dict[str, Any] = dataclasses.field(default_factory=dict)
    asked: float = 0.0
    last: float = 0.0

    def opening(self, now: float) -> dict[str, Any]:
        """What to send on a fresh socket: the request, or the wish for the rest."""
        self.asked = self.asked or now
        if self.id:
            return {"type": "response.resume", "response_id": self.id, "starting_after": self.number}
        return {"type": "response.create", **self.request}

    def take(self, event: dict[str, Any], now: float) -> str:
        """Note an event; returns its text. Raises Refused when it is an error."""
        kind, response = event.get("type"), event.get("response") or {}
        self.number = event.get("sequence_number", self.number)
        self.id = response.get("id", self.id)
        error = event.get("error") if kind == "error" else response.get("error")
        if error:
            raise Refused(error["message"])
        if kind in _TERMINAL:
            self.over, self.usage = True, response.get("usage") or {}
        if kind != "response.output_text.delta":
            return ""
        self.last = now
        self.text += event["delta"]
        return str(event["delta"])

    @property
    def summary(self) -> str:
        """Tokens, how many a second since the question, and what the prefix cache had; "" before the end."""
        if not self.usage:
            return ""
        tokens, prompt = self.usage["output_tokens"], self.usage["input_tokens"]
        cached = self.usage["input_tokens_details"]["cached_tokens"]
        words = [several(tokens, "token"), f"{cached} of {prompt} prompt tokens cached"]
        if self.last:
            words.insert(1, f"{tokens / (self.last - self.asked):.0f} tokens/s")
        return ", ".join(words)


def stream(server: Server, answer: Answer, show: Callable[[str], None], waiting: Callable[[], None]) -> None:
    """Bring `answer` to its end. show: gets each piece of text; waiting: is called when the server is lost.

    Whoever interrupts it leaves the socket closed, which ends the response. Raises Refused, Gone.
    """
    lost_at: float | None = None
    while not answer.over:
        before = answer.number
        try:
            _listen(server, answer, show)
        except InvalidStatus as error:
            if error.response.status_code != _BUSY:
                raise Refused(_sentence(error.response.body, error.response.status_code)) from error
        except (ConnectionClosed, InvalidHandshake, OSError):
            pass
        if answer.over:
            return
        now = time.monotonic()
        if lost_at is None or answer.number > before:
            lost_at = now
            waiting()
        if now - lost_at > PATIENCE:
            raise Gone(f"nobody answers at {server.url}.")
        time.sleep(RETRY_SECONDS)


def _listen(server: Server, answer: Answer, show: Callable[[str], None]) -> None:
    """Follow the answer on one socket."""
    with connect(
        f"ws{server.url.removeprefix('http')}/v1/responses",
        additional_headers=server.headers,
        ssl=server.tls,
        compression=None,
        proxy=None,
        max_size=None,
        close_timeout=1,
    ) as socket:
        socket.send(json.dumps(answer.opening(time.monotonic())))
        while not answer.over:
            text = answer.take(json.loads(socket.recv()), time.monotonic())
            if text:
                show(text)


def _sentence(body: bytes | bytearray | None, status: int) -> str:
    """What a refusal says, if it is one of ours."""
    try:
        return str(json.loads(body or b"")["error"]["message"])
    except (ValueError, LookupError, TypeError):
        return f"the server answered {status}."
