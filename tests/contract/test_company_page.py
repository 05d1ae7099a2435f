"""The live page in a headless Chromium: the tree, rates under load, a SIGKILL as it happens, keys."""

from __future__ import annotations

import json
import pathlib
import threading
import urllib.request
from collections.abc import Iterator

import pytest

from tests.browser import Tab
from tests.serving import Company, actorctl, serving
from tests.streams import ask

pytestmark = pytest.mark.timeout(400)

WATCHING = "document.body.dataset.state === 'watching' && document.querySelectorAll('.actor').length > 0"
ROW = "document.querySelector('[data-actor=\"{}\"]')"


@pytest.fixture(scope="module")
def company() -> Iterator[Company]:
    with serving("--executor", "hash", "--step-ms", "10") as running:
        yield running


@pytest.fixture
def tab(window: Tab) -> Iterator[Tab]:
    """A tab of which nothing is wrong at the end."""
    window.problems.clear()
    window.show(1180, 900)
    yield window
    noted = ("WebSocket connection", "Failed to load")
    assert [problem for problem in window.problems if not problem.startswith(noted)] == []


def page_of(company: Company) -> str:
    return company.url.removesuffix("v1") + "_company"


def load(company: Company, requests: int) -> list[threading.Thread]:
    """So many long completions at once, each in a thread that has begun."""
    body = {"model": company.model, "prompt": "on and on", "max_tokens": 1500, "ignore_eos": True}
    asked = urllib.request.Request(
        f"{company.url}/completions", json.dumps(body).encode(), {"content-type": "application/json"}
    )

    def one() -> None:
        with urllib.request.urlopen(asked, timeout=300) as answer:
            answer.read()

    threads = [threading.Thread(target=one, daemon=True) for _ in range(requests)]
    for thread in threads:
        thread.start()
    return threads


def test_the_company_under_load_and_a_kill_as_it_happens(tab: Tab, company: Company) -> None:
    threads = load(company, 6)
    tab.open(page_of(company))
    tab.until(WATCHING)
    actors = tab.value("[...document.querySelectorAll('.actor')].map((row) => row.dataset.actor)")
    assert actors == ["executor.0", "scheduler.0", "tokenizer.0", "frontend.0"]
    assert tab.value("document.querySelectorAll('.group').length") == 4
    shown = "[...document.querySelectorAll('.figure')].map((box) => box.innerText.split('\\n'))"
    tab.until(f"{shown}.some(([count, what]) => what === 'running' && +count === 6)")
    tab.until(f"{shown}.some(([count, what]) => what === 'tokens/s' && parseFloat(count) > 0)")
    company.kill("executor.0")
    tab.until('document.querySelector(\'#events [data-kind="lost"][data-actor="executor.0"]\')?.innerText')
    tab.until(
        "document.querySelector('#events').innerText.includes('starting executor.0 again (incarnation 2)')"
    )
    row = ROW.format("executor.0")
    tab.until(f"{row}.dataset.state === 'ready' && {row}.children[2].innerText === '2'")
    tab.until(f"{shown}.some(([count, what]) => what === 'tokens/s' && parseFloat(count) > 0)")
    ask(company, "request.abort", all=True)
    for thread in threads:
        thread.join(300)
        assert not thread.is_alive()


def test_a_killed_frontend_is_only_a_pause(tab: Tab, company: Company) -> None:
    tab.open(page_of(company))
    tab.until(WATCHING)
    before = tab.value("seen")
    company.kill("frontend.0")
    tab.until('document.querySelector(\'#events [data-kind="lost"][data-actor="frontend.0"]\')?.innerText')
    tab.until(f"{WATCHING} && {ROW.format('frontend.0')}.dataset.state === 'ready' && seen > {before}")
    numbers = tab.value("document.querySelectorAll('#events li').length")
    assert numbers == tab.value(
        "new Set([...document.querySelectorAll('#events li')].map((e) => e.innerText)).size"
    )


def test_it_loads_nothing_from_elsewhere(company: Company) -> None:
    with urllib.request.urlopen(page_of(company), timeout=60) as reply:
        page, policy = reply.read(), reply.headers["content-security-policy"]
    assert b"http://" not in page and b"https://" not in page
    assert "default-src 'none'" in policy and "unsafe" not in policy


def test_an_administrators_key_where_keys_are_asked_for(tab: Tab, tmp_path: pathlib.Path) -> None:
    keys = tmp_path / "keys.toml"
    keys.write_text("")
    client = actorctl("keys", "add", str(keys), "alice").stdout.strip()
    admin = actorctl("keys", "add", str(keys), "operator", "--admin").stdout.strip()
    with serving("--executor", "hash", "--keys", str(keys)) as company:
        tab.open(page_of(company))
        tab.until("document.body.dataset.state === 'locked'")
        tab.type(client)
        tab.press("Enter", 13, "\r")
        tab.until("document.getElementById('refusal').textContent.includes('does not open')")
        assert tab.value("document.querySelectorAll('.actor').length") == 0
        tab.value("document.getElementById('key').value = ''")
        tab.type(admin)
        tab.press("Enter", 13, "\r")
        tab.until(WATCHING)
        assert tab.value("document.getElementById('door').hidden")
