"""SIGKILL a frontend under real clients: they come back by id and number, and see exactly the same events."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2
import openai
import pytest
import websockets.exceptions

from runtime import admin, failpoints
from tests.faults.stage import until
from tests.patience import PATIENCE
from tests.serving import Company, serving

HASH = ("--executor", "hash", "--step-ms", "15", "--max-running", "16", "--log-format", "json")
LOST = (openai.APIError, httpx2.HTTPError, websockets.exceptions.ConnectionClosed, OSError)
TERMINAL = {"response.completed", "response.incomplete", "response.failed", "error"}

# The client calls a form of websockets' connect() that websockets 17 deprecates; it works.
pytestmark = pytest.mark.filterwarnings(
    "ignore:connect\\(\\) must be used as a context manager:DeprecationWarning"
)

Events = list[dict[str, Any]]
Show = Callable[[int], None]


@pytest.fixture(scope="module")
def company() -> Iterator[Company]:
    with serving(*HASH) as running:
        yield running


def client_of(company: Company) -> openai.OpenAI:
    return openai.OpenAI(base_url=company.url, api_key="none", max_retries=0)


TOKENS, LONG = 100, 200


def body(company: Company, number: int, extra: dict[str, Any] | None = None, **fields: Any) -> dict[str, Any]:
    """A request whose answer is its own, of TOKENS tokens."""
    return {
        "model": company.model,
        "input": f"Number {number}: tell me a story about a house and a river",
        "temperature": 0.9,
        "max_output_tokens": TOKENS,
        "extra_body": {"ignore_eos": True, "seed": number, **(extra or {})},
        **fields,
    }


def bodies(company: Company, tokens: int) -> list[dict[str, Any]]:
    logprobs: dict[str, Any] = {"include": ["message.output_text.logprobs"], "top_logprobs": 2}
    made = [
        body(company, 1),
        body(company, 2, **logprobs),
        body(company, 3, store=False, instructions="Be brief.", metadata={"a": "b"}),
        body(company, 4, {"stop": ["qu", "zz"]}),
    ]
    return [request | {"max_output_tokens": tokens} for request in made]


def until_back(attempt: Callable[[], Any]) -> Any:
    """What `attempt` gives, tried until a frontend answers."""
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            return attempt()
        except LOST as error:
            if isinstance(error, openai.APIStatusError) or time.monotonic() > deadline:
                raise


def over_http(company: Company, request: dict[str, Any], show: Show) -> Events:
    """Stream a response by server-sent events; cut off, resume it by id and number."""
    events: Events = []
    with client_of(company) as client:
        stream = until_back(lambda: client.responses.create(**request, stream=True))
        while not events or events[-1]["type"] not in TERMINAL:
            try:
                for event in stream:
                    events.append(event.to_dict())
                    show(len(events))
            except LOST:
                stream = until_back(lambda: resumed(client, events))
    return events


def resumed(client: openai.OpenAI, events: Events) -> Any:
    """The rest of a stream that was cut off."""
    assert events, "cut off before the first event"
    id, seen = events[0]["response"]["id"], events[-1]["sequence_number"]
    return client.responses.retrieve(id, stream=True, starting_after=seen)


def over_socket(company: Company, request: dict[str, Any], show: Show) -> Events:
    """The same on a WebSocket, on a named lane."""
    lane = {"stream_id": "lane"}
    fields = {name: value for name, value in request.items() if name != "extra_body"}
    message = {"type": "response.create", **fields, **request["extra_body"], **lane}
    events: Events = []
    with client_of(company) as client:
        while not events or events[-1]["type"] not in TERMINAL:
            try:
                with contextlib.closing(until_back(client.responses.connect().enter)) as connection:
                    connection.send(message)
                    for event in connection:
                        events.append(event.to_dict())
                        show(len(events))
                        if event.type in TERMINAL:
                            break
            except LOST:
                assert events, "cut off before the first event"
            message = {
                "type": "response.resume",
                "response_id": events[0]["response"]["id"],
                "starting_after": events[-1]["sequence_number"],
                **lane,
            }
    assert all(event.pop("stream_id") == "lane" for event in events)
    return events


WAYS = (over_http, over_socket)


def stream_all(
    company: Company, kill: Callable[[], object] | None = None, tokens: int = TOKENS
) -> list[Events]:
    """All requests both ways at once; `kill` when every stream has shown some text."""
    asks = [(way, request) for way in WAYS for request in bodies(company, tokens)]
    flowing = [threading.Event() for _ in asks]

    def show(number: int) -> Show:
        return lambda seen: flowing[number].set() if seen == 15 else None

    with ThreadPoolExecutor(len(asks)) as pool:
        running = [pool.submit(way, company, request, show(i)) for i, (way, request) in enumerate(asks)]
        if kill is not None:
            assert all(event.wait(PATIENCE) for event in flowing)
            kill()
        return [answer.result(3 * PATIENCE) for answer in running]


def own(events: Events) -> Any:
    """The events without what differs between two answers to the same request: ids, times, spans."""
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    response = events[0]["response"]
    for event in events:
        if "response" in event:
            assert event["response"]["id"] == response["id"]
            assert event["response"]["created_at"] == response["created_at"]
            event["response"]["completed_at"] = None
            event["response"].pop("traceparent", None)
    text = json.dumps(events).replace(response["id"], "ID")
    text = text.replace(events[2]["item"]["id"], "ITEM")
    return json.loads(text.replace(json.dumps(response["created_at"]), "0"))


def free_of_work(company: Company) -> bool:
    """Whether nothing runs and no page is owned."""
    scheduler = company.actor("scheduler.0")
    return not (scheduler["running"] or scheduler["waiting"] or scheduler["pages_owned"])


def test_streams_go_on_exactly_where_they_were(company: Company) -> None:
    stream_all(company, tokens=2)  # so that the prefix cache knows the prompts
    calm = [own(events) for events in stream_all(company)]
    assert calm[0] == calm[4]
    killed = stream_all(company, lambda: company.kill("frontend.0"))
    assert company.actor("frontend.0")["restarts"] == 1
    assert [own(events) for events in killed] == calm


def test_a_response_that_nobody_comes_back_for_is_aborted() -> None:
    options = (*HASH, "--orphan-seconds", "3", "--max-open", "2", "--linger-seconds", "1")
    with serving(*options) as company, client_of(company) as client:
        request = body(company, 7, max_output_tokens=1500, stream=True)
        streams = [client.responses.create(**request) for _ in range(2)]
        ids = [next(iter(stream)).response.id for stream in streams]
        company.kill("frontend.0")
        with pytest.raises(openai.APIStatusError) as caught:
            until_back(lambda: client.responses.create(**body(company, 8)))
        assert caught.value.status_code == 503
        until(lambda: free_of_work(company), "nothing left to do")
        for number in (8, 9):
            assert client.responses.create(**body(company, number)).status == "incomplete"
        for id in ids:
            with pytest.raises(openai.NotFoundError):
                client.responses.retrieve(id)
        for stream in streams:
            stream.close()


def test_another_frontend_takes_the_clients(company: Company) -> None:
    """The next incarnation of the dead one takes its time, so that the clients come to the other."""
    stream_all(company, tokens=2)  # so that the prefix cache knows the prompts, as in the other company
    calm = [own(events) for events in stream_all(company, tokens=LONG)]
    late = {failpoints.VARIABLE: "frontend.*/frontend.recovered=pause:3000#2"}
    with serving(*HASH, "--frontends", "2", environment=late) as pair:
        stream_all(pair, tokens=2)
        killed: list[str] = []
        answers = stream_all(pair, lambda: killed.append(kill_the_busier(pair)), tokens=LONG)
        assert [own(events) for events in answers] == calm
        (victim,) = killed
        (survivor,) = {"frontend.0", "frontend.1"} - {victim}
        lines = [json.loads(line) for line in pair.stderr().splitlines()]
        assert survivor in {line["actor"] for line in lines if line["event"] == "response_adopted"}
        until(lambda: pair.actor(victim)["restarts"] == 1, "the victim to be back")
        assert pair.actor(survivor)["restarts"] == 0


def kill_the_busier(pair: Company) -> str:
    """SIGKILL the frontend with more open requests, at once: without a process that asks for the status."""
    status = admin.ask(admin.address(pair.name), {"verb": "status"})
    frontends = [actor for actor in status["actors"] if actor["kind"] == "frontend"]
    victim = max(frontends, key=lambda actor: int(actor["open_requests"]))
    os.kill(victim["pid"], signal.SIGKILL)
    return str(victim["name"])
