"""The chat page in a headless Chromium: talk, stop, keys, mistakes, a frontend killed in mid-sentence."""

from __future__ import annotations

import json
import os
import re
import signal
import urllib.request
from collections.abc import Iterator

import pytest

from actors.frontend.page import headers
from tests.browser import Tab
from tests.endless import endless
from tests.faults.stage import until
from tests.serving import Company, serving

pytestmark = pytest.mark.timeout(400)

KEY = "s3cret key/(100%)"
READY = "document.body.dataset.state === 'ready'"


@pytest.fixture(scope="module")
def company() -> Iterator[Company]:
    with serving("--dtype", "float32", "--api-key", KEY) as running:
        yield running


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Company]:
    model = endless(tmp_path_factory.mktemp("slow"))
    with serving("--executor", "hash", "--step-ms", "15", model=model) as running:
        yield running


@pytest.fixture
def tab(window: Tab) -> Iterator[Tab]:
    """A tab without problems, before and after."""
    window.problems.clear()
    window.show(1000, 720)
    yield window
    assert window.problems == []


def page_of(company: Company) -> str:
    return company.url.removesuffix("v1")


def enter(tab: Tab, company: Company) -> None:
    """Open the page and wait for its model; the key that is wanted is known already."""
    tab.open(page_of(company))
    tab.value(f"sessionStorage.setItem('troupe.key', {json.dumps(KEY)})")
    tab.open(page_of(company))
    tab.until(READY)


def say(tab: Tab, text: str) -> None:
    tab.value("document.getElementById('say').focus()")
    tab.type(text)
    tab.press("Enter", 13, "\r")


def answer(tab: Tab, count: int) -> str:
    """Wait until the `count`-th answer has ended; all that it shows."""
    tab.until(f"document.querySelectorAll('.facts[data-done]').length === {count} && !turn")
    return str(tab.value("[...document.querySelectorAll('.answer')].at(-1).innerText"))


def test_it_may_do_no_more_than_it_must(company: Company) -> None:
    with urllib.request.urlopen(page_of(company), timeout=60) as reply:
        page, told = reply.read(), reply.headers
    assert told["content-type"] == "text/html; charset=utf-8"
    assert dict(headers(page)).items() <= {name.lower(): value for name, value in told.items()}.items()
    policy = told["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy and "connect-src 'self'" in policy
    assert re.search(rb"https?://(?!www\.w3\.org/2000/svg)[a-z]", page) is None, "no address of anybody else"
    assert re.search(rb"<[^>]+ (on[a-z]+|style)=", page) is None, "nothing inline that the policy refuses"


def test_a_key_is_asked_for_and_travels_on_the_websocket(tab: Tab, company: Company) -> None:
    tab.open(page_of(company))
    tab.value("sessionStorage.clear()")
    tab.open(page_of(company))
    tab.until("document.getElementById('dialog').open")
    assert "This server wants an API key." in tab.value("document.getElementById('dialog').innerText")
    tab.type("wrong")
    tab.press("Enter", 13, "\r")
    tab.until("settings.key === 'wrong' && document.getElementById('dialog').open")
    tab.value("document.getElementById('key').select()")
    tab.type(KEY)
    tab.press("Enter", 13, "\r")
    tab.until(READY)
    assert tab.value("document.getElementById('model').value") == company.model
    say(tab, "What is 12 + 30?")
    assert "12 + 30 = 42." in answer(tab, 1)
    refusals = [problem for problem in tab.problems if "401" in problem]
    assert refusals == tab.problems, "the browser notes the refusals itself"
    tab.problems.clear()


def test_a_conversation_with_its_figures(tab: Tab, company: Company) -> None:
    enter(tab, company)
    tab.value("settings.temperature = '0'")
    tab.value(
        "window.sent = []; const send = WebSocket.prototype.send;"
        "WebSocket.prototype.send = function (text) { sent.push(JSON.parse(text)); send.call(this, text); }"
    )
    tab.click(".ideas button")
    first = answer(tab, 1)
    assert "12 + 30 = 42." in first
    say(tab, "What is 20 + 3?")
    second = answer(tab, 2)
    assert "20 + 3 = 23." in second
    for shown in (first, second):
        assert re.search(r"\d+ tokens\s+\d+ tokens/s\s+\d+ of \d+ prompt tokens cached", shown), shown
    assert int(re.findall(r"(\d+) of \d+ prompt", second)[0]) > 0
    opening, following = tab.value("sent")
    assert "previous_response_id" not in opening
    assert following["previous_response_id"] == tab.value("turns[0].id")
    assert following["input"] == "What is 20 + 3?"


def test_a_server_that_forgot_is_told_again(tab: Tab, company: Company) -> None:
    enter(tab, company)
    tab.value("settings.temperature = '0'")
    say(tab, "What is 12 + 30?")
    answer(tab, 1)
    tab.value(
        "fetch(`v1/responses/${turns[0].id}`,"
        "{method: 'DELETE', headers: {authorization: `Bearer ${settings.key}`}}).then(() => line.close())"
    )
    say(tab, "What is 20 + 3?")
    assert "20 + 3 = 23." in answer(tab, 2)
    assert tab.value("turns[1].whole")


def test_a_mistake_is_a_sentence_and_can_be_tried_again(tab: Tab, company: Company) -> None:
    enter(tab, company)
    tab.value("settings.limit = '5000'")
    say(tab, "What is 12 + 30?")
    assert "maximum context length is 2048 tokens" in answer(tab, 1)
    tab.value("settings.limit = '30'; settings.temperature = '0'")
    tab.click("[data-again]")
    shown = answer(tab, 1)
    assert "42" in shown and "maximum context" not in shown
    tab.click("#fresh")
    assert tab.value("document.getElementById('log').children.length") == 0
    assert tab.value("!document.getElementById('welcome').hidden")


@pytest.mark.parametrize("how", ["button", "escape"])
def test_stop(tab: Tab, slow: Company, how: str) -> None:
    enter(tab, slow)
    tab.value("settings.limit = '1500'")
    say(tab, "on and on")
    tab.until("turn.text.length > 100")
    if how == "button":
        tab.click("#stop")
    else:
        tab.press("Escape", 27)
    assert "stopped" in answer(tab, 1)
    until(lambda: not slow.actor("scheduler.0")["running"], "nothing runs")
    until(lambda: not slow.actor("scheduler.0")["pages_owned"], "no page is owned")


def test_a_killed_frontend_is_only_a_pause(tab: Tab, slow: Company) -> None:
    enter(tab, slow)
    tab.value("settings.limit = '1500'")
    pid = slow.pids()["frontend.0"]
    say(tab, "Tell me a story")
    tab.until("turn.text.length > 100")
    tab.value(
        "window.lived = []; new MutationObserver(() => lived.push(document.body.dataset.state))"
        ".observe(document.body, {attributes: true})"
    )
    os.kill(pid, signal.SIGKILL)
    tab.until("lived.includes('reconnecting') && lived.at(-1) === 'streaming'")
    seen = tab.value("turn.text.length")
    tab.until(f"turn.text.length > {seen + 100}")
    tab.click("#stop")
    answer(tab, 1)
    assert tab.value("turns[0].error") is None
    stored = tab.value(
        "fetch(`v1/responses/${turns[0].id}`).then((answer) => answer.json())"
        ".then((response) => response.output[0].content[0].text)"
    )
    assert tab.value("turns[0].text") == stored
    noted = ("WebSocket connection", "Failed to load")
    tab.problems[:] = [problem for problem in tab.problems if not problem.startswith(noted)]


def test_what_a_model_says_is_text(tab: Tab, slow: Company) -> None:
    enter(tab, slow)
    said = "<img src=x onerror=alert(1)> [x](javascript:alert(1)) [y](https://example.org/)"
    said += "\n\n```py\nif a:\n  b\n```"
    shown = tab.value(
        f"(() => {{ const box = document.createElement('div'); box.append(...render({json.dumps(said)}));"
        " return [box.querySelectorAll('img').length, box.querySelectorAll('a').length,"
        " box.querySelector('p').textContent, box.querySelector('pre').textContent]; })()"
    )
    assert shown == [
        0,
        1,
        "<img src=x onerror=alert(1)> [x](javascript:alert(1)) y",
        "if a:\n  b",
    ]


@pytest.mark.parametrize("width", [320, 1000])
def test_nothing_overflows_and_everything_has_a_name(tab: Tab, slow: Company, width: int) -> None:
    tab.show(width, 640, dark=width == 320)
    enter(tab, slow)
    tab.value("settings.limit = '60'")
    say(tab, "unbroken" * 60)
    answer(tab, 1)
    assert tab.value("document.documentElement.scrollWidth") <= width
    nameless = tab.value(
        "[...document.querySelectorAll('button, select, input, textarea')].filter((each) =>"
        " !(each.ariaLabel || each.labels?.[0]?.textContent || each.textContent).trim())"
        ".map((each) => each.id)"
    )
    assert nameless == []
