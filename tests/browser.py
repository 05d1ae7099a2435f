"""A headless Chromium for tests, driven by its DevTools protocol over a WebSocket."""

from __future__ import annotations

import base64
import contextlib
import http.client
import itertools
import json
import os
import pathlib
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from typing import Any

import pytest
import websockets.sync.client

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
PATIENCE = 120.0
"""Seconds that anything may take in the browser."""
_SWITCHES = (
    "--headless",
    "--no-sandbox",  # it refuses to run as root otherwise, and shows nothing but our own page
    "--no-zygote",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-breakpad",
    "--disable-crash-reporter",
    "--disable-extensions",
    "--disable-sync",
    "--no-first-run",
    "--no-default-browser-check",
    "--no-proxy-server",
    "--hide-scrollbars",
    "--password-store=basic",
    "--remote-debugging-port=0",
)


class Tab:
    """One tab. problems: exceptions, console errors and violations of the page's policy."""

    def __init__(self, socket: websockets.sync.client.ClientConnection) -> None:
        self.problems: list[str] = []
        self._socket = socket
        self._loads = 0
        self._numbers = itertools.count(1)
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> Any:
        """Call a method of the protocol; its result."""
        number = next(self._numbers)
        self._socket.send(json.dumps({"id": number, "method": method, "params": parameters}))
        while True:
            message = json.loads(self._socket.recv(timeout=PATIENCE))
            if message.get("id") == number:
                assert "error" not in message, message["error"]
                return message["result"]
            self._note(message)

    def open(self, url: str) -> None:
        """Go to a page and wait until it is loaded."""
        before = self._loads
        self.call("Page.navigate", url=url)
        while self._loads == before:
            self._note(json.loads(self._socket.recv(timeout=PATIENCE)))

    def value(self, expression: str) -> Any:
        """What a JavaScript expression gives, as JSON; promises are awaited."""
        done = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in done, done["exceptionDetails"]
        return done["result"].get("value")

    def until(self, expression: str) -> Any:
        """Wait until an expression is true; what it gave."""
        deadline = time.monotonic() + PATIENCE
        while not (value := self.value(expression)):
            assert time.monotonic() < deadline, f"{expression}\n{self.value('document.body.innerText')}"
            time.sleep(0.02)
        return value

    def type(self, text: str) -> None:
        """Type into what has the focus."""
        self.call("Input.insertText", text=text)

    def press(self, key: str, code: int, text: str = "") -> None:
        """Press and release a key."""
        what = {"key": key, "code": key, "windowsVirtualKeyCode": code}
        self.call("Input.dispatchKeyEvent", type="keyDown", text=text, **what)
        self.call("Input.dispatchKeyEvent", type="keyUp", **what)

    def click(self, selector: str) -> None:
        """Click in the middle of an element, as a mouse does."""
        box = self.value(
            f"(() => {{ const r = document.querySelector({json.dumps(selector)}).getBoundingClientRect();"
            " return [r.x + r.width / 2, r.y + r.height / 2, r.width]; })()"
        )
        assert box[2] > 0, f"{selector} is not shown"
        where = {"x": box[0], "y": box[1], "button": "left", "clickCount": 1}
        self.call("Input.dispatchMouseEvent", type="mousePressed", **where)
        self.call("Input.dispatchMouseEvent", type="mouseReleased", **where)

    def show(self, width: int, height: int, *, dark: bool = False, scale: float = 1) -> None:
        """The size of the window, and the colours that its owner likes."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=scale,
            mobile=False,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])

    def picture(self, path: pathlib.Path) -> None:
        """Save what is seen as a PNG."""
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot")["data"]))

    def _note(self, message: dict[str, Any]) -> None:
        match message["method"]:
            case "Page.loadEventFired":
                self._loads += 1
            case "Runtime.exceptionThrown":
                self.problems.append(json.dumps(message["params"]["exceptionDetails"]))
            case "Log.entryAdded" if message["params"]["entry"]["level"] == "error":
                self.problems.append(message["params"]["entry"]["text"])


@contextlib.contextmanager
def browser() -> Iterator[Tab]:
    """A fresh browser with one tab; skips the test where none is installed."""
    found = _browser()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        process = subprocess.Popen(
            [found, *_SWITCHES, f"--user-data-dir={folder}", "about:blank"],
            env={**os.environ, "HOME": folder, "TMPDIR": folder},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            port = _port(pathlib.Path(folder) / "DevToolsActivePort", process)
            with websockets.sync.client.connect(_address(port), max_size=None, proxy=None) as socket:
                yield Tab(socket)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait(30)


def _browser() -> str:
    """The first browser that is more than a name: some systems have a script that says how to get one."""
    for path in filter(None, map(shutil.which, NAMES)):
        told = subprocess.run([path, "--version"], capture_output=True, timeout=PATIENCE, check=False)
        if told.returncode == 0:
            return path
    pytest.skip("no Chromium is installed")


def _port(file: pathlib.Path, process: subprocess.Popen[bytes]) -> int:
    deadline = time.monotonic() + PATIENCE
    while not (lines := file.read_text().split() if file.exists() else []):
        assert process.poll() is None, f"Chromium ended with {process.returncode}"
        assert time.monotonic() < deadline, "Chromium did not start"
        time.sleep(0.05)
    return int(lines[0])


def _address(port: int) -> str:
    """The WebSocket of the first tab."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
        with contextlib.closing(connection):
            connection.request("GET", "/json/list")
            tabs = json.loads(connection.getresponse().read())
        for tab in tabs:
            if tab["type"] == "page":
                return str(tab["webSocketDebuggerUrl"])
        time.sleep(0.05)
    raise AssertionError("Chromium has no tab")
