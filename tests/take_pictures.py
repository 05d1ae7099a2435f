"""`python -m tests.take_pictures`: the chat page and the live page as the docs show them.

Of the demo model, in a headless Chromium: two questions; then twelve clients, and the executor is killed.
"""

from __future__ import annotations

import pathlib
import time

import click

from runtime import admin
from tests.browser import Tab, browser
from tools.launch import Launched, launched
from tools.pictures import DOCS, loaded

QUESTIONS = ("What is 12 + 30?", "Tell me a story about a river.")
SETTLED = 4.0
"""Seconds of load before the executor is killed, and after it is back."""


@click.command()
@click.option("--folder", type=click.Path(path_type=pathlib.Path), default=DOCS, show_default=True)
def main(folder: pathlib.Path) -> None:
    """Take `chat.png` and `company.png`."""
    with browser() as tab, launched(("--kv-memory", "24MiB"), kind="", name="demo") as demo:
        status = demo.await_ready()
        _talk(tab, str(status["url"]), folder / "chat.png")
        with loaded(status):
            _watch(tab, demo, f"{status['url']}/_company", folder / "company.png")


def _talk(tab: Tab, url: str, path: pathlib.Path) -> None:
    tab.show(900, 640)
    tab.open(f"{url}/")
    tab.until("document.getElementById('model').value")
    tab.value("settings.temperature = '0'")
    for number, question in enumerate(QUESTIONS, 1):
        tab.value("document.getElementById('say').focus()")
        tab.type(question)
        tab.press("Enter", 13, "\r")
        tab.until(f"document.querySelectorAll('.facts[data-done]').length === {number} && !turn")
    tab.picture(path)


def _watch(tab: Tab, demo: Launched, url: str, path: pathlib.Path) -> None:
    tab.show(1180, 900, scale=1.5)
    tab.open(url)
    tab.until("document.querySelectorAll('.actor').length > 0")
    time.sleep(SETTLED)
    admin.ask(demo.address, {"verb": "actor.kill", "name": "executor.0"})
    row = "document.querySelector('[data-actor=\"executor.0\"]')"
    tab.until(f"{row}.dataset.state === 'ready' && {row}.children[2].innerText === '2'")
    time.sleep(SETTLED)
    tab.picture(path)


if __name__ == "__main__":
    main()
