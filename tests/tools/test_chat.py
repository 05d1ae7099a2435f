"""`actorctl chat` in a pipe and in a terminal: turns, figures, interruption, a server process that dies."""

from __future__ import annotations

import os
import pathlib
import re
import select
import signal
import subprocess
import time
from collections.abc import Callable, Iterator

import pytest

from tests import streams
from tests.endless import endless
from tests.faults.stage import until
from tests.patience import PATIENCE
from tests.serving import ACTORCTL, ROOT, Company, actorctl, serving
from tools.actorctl.answer import Answer, Refused

pytestmark = pytest.mark.timeout(300)

SLOW = ("--executor", "hash", "--step-ms", "15")
LONG = ("--max-tokens", "1500")
TLS = ROOT / "tests" / "runtime" / "tls"
TRUST = ("--cacert", str(TLS / "cert.pem"))


@pytest.fixture(scope="module")
def company() -> Iterator[Company]:
    files = ("--tls-cert", str(TLS / "cert.pem"), "--tls-key", str(TLS / "key.pem"))
    with serving("--dtype", "float32", "--api-key", "s3cret", *files) as running:
        yield running


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Company]:
    with serving(*SLOW, model=endless(tmp_path_factory.mktemp("slow"))) as running:
        yield running


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TROUPE_API_KEY", "s3cret")


def test_a_strange_certificate_is_not_trusted(company: Company) -> None:
    done = actorctl("chat", "hi", "--name", company.name)
    assert done.returncode == 69 and "certificate verify failed" in done.stderr


class Terminal:
    """`actorctl chat` with a terminal of its own."""

    def __init__(self, company: Company, *options: str) -> None:
        self.text = ""
        self._mine, its = os.openpty()
        command = (*ACTORCTL, "chat", "--name", company.name, *TRUST, *options)
        self.process = subprocess.Popen(command, cwd=ROOT, stdin=its, stdout=its, stderr=its)
        os.close(its)

    def __enter__(self) -> Terminal:
        self.until("Ctrl-C stops an answer.")
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._mine)

    def send(self, line: str) -> None:
        """Type a line; what was shown before it is forgotten once its echo is there."""
        self.text = ""
        os.write(self._mine, f"{line}\n".encode())
        self.until(line)
        self.text = self.text.partition(line)[2]

    def until(self, words: str | Callable[[], bool]) -> str:
        """Read until `words` are shown, or until they are true; everything since the last `send`."""
        deadline = time.monotonic() + 100
        while not (words in self.text if isinstance(words, str) else words()):
            assert time.monotonic() < deadline, self.text
            if select.select([self._mine], [], [], 0.1)[0]:
                self.text += os.read(self._mine, 65536).decode(errors="replace")
        return self.text


def chat(company: Company, *arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    command = (*ACTORCTL, "chat", "--name", company.name, *TRUST, *arguments)
    return subprocess.run(
        command, cwd=ROOT, input=stdin, capture_output=True, text=True, timeout=100, check=False
    )


def test_in_a_pipe(company: Company) -> None:
    done = chat(company, stdin="What is 12 + 30?\n")
    assert (done.returncode, done.stdout) == (0, "12 + 30 = 42.\n")
    assert re.fullmatch(r"\d+ tokens, \d+ tokens/s, \d+ of \d+ prompt tokens cached\n", done.stderr), (
        done.stderr
    )


def test_a_message_as_an_argument_and_a_server_by_its_url(company: Company) -> None:
    url = company.status()["url"]
    assert url.startswith("https://")
    done = chat(company, "What is 20 + 3?", "--url", url, "--system", "Answer.", "--temperature", "0")
    assert (done.returncode, done.stdout) == (0, "20 + 3 = 23.\n")
    assert chat(company, "What is 20 + 3?", "--max-tokens", "1").stderr.startswith("1 token, ")


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (("hi", "--api-key", "wrong"), 1, "A valid API key is needed"),
        (("hi", "--model", "nobody"), 1, "The model 'nobody' does not exist."),
        (("hi", "--max-tokens", "5000"), 1, "maximum context length"),
        (("hi", "--url", "http://127.0.0.1:1"), 69, "nobody answers at http://127.0.0.1:1"),
        (("hi", "--url", "http://no where"), 1, "does not answer as a model server does"),
        (("hi", "--url", "nowhere"), 2, "an address begins with http:// or https://"),
        (("hi", "--cacert", "README.md"), 69, "NO_CERTIFICATE"),
        ((), 2, "there is no message"),
    ],
)
def test_what_does_not_work_is_one_sentence(
    company: Company, options: tuple[str, ...], code: int, words: str
) -> None:
    done = chat(company, *options)
    assert (done.returncode, done.stdout) == (code, "")
    assert words in done.stderr and "Traceback" not in done.stderr


def test_a_conversation(company: Company) -> None:
    with Terminal(company, "--temperature", "0") as terminal:
        terminal.send("What is 12 + 30?")
        first = terminal.until("cached")
        assert "12 + 30 = 42." in first
        terminal.send("What is 20 + 3?")
        assert _prompt_tokens(terminal.until("cached")) > 2 * _prompt_tokens(first) - 8
        terminal.send("/reset")
        terminal.until("A new conversation.")
        terminal.send("What is 12 + 30?")
        assert _prompt_tokens(terminal.until("cached")) == _prompt_tokens(first)
        terminal.send("/quit")
        assert terminal.process.wait(PATIENCE) == 0


def _prompt_tokens(shown: str) -> int:
    found = re.search(r"of (\d+) prompt tokens", shown)
    assert found is not None, shown
    return int(found[1])


def test_an_interrupt_stops_the_answer_and_not_the_program(slow: Company) -> None:
    with Terminal(slow, *LONG) as terminal:
        terminal.send("on and on")
        terminal.until(lambda: len(terminal.text) > 200)
        terminal.process.send_signal(signal.SIGINT)
        terminal.until("stopped")
        _await_idle(slow)
        terminal.send("/help")
        terminal.until("/quit or Ctrl-D leaves")
        terminal.send("/quit")
        assert terminal.process.wait(PATIENCE) == 0


def _await_idle(company: Company) -> None:
    def is_idle() -> bool:
        scheduler = company.actor("scheduler.0")
        return not (scheduler["running"] or scheduler["pages_owned"])

    until(is_idle, "nothing runs")


def test_a_killed_frontend_is_only_a_pause(slow: Company, tmp_path: pathlib.Path) -> None:
    ask = (*ACTORCTL, "chat", "Tell me a story", "--name", slow.name, "--seed", "7", "--max-tokens")
    calm = subprocess.run((*ask, "150"), cwd=ROOT, capture_output=True, timeout=100, check=True).stdout
    said, pid = tmp_path / "said", slow.pids()["frontend.0"]

    def heard(length: int) -> None:
        deadline = time.monotonic() + 100
        while len(said.read_bytes()) < length:
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.05)

    with said.open("wb") as out:
        process = subprocess.Popen((*ask, "1500"), cwd=ROOT, stdout=out, stderr=subprocess.PIPE, text=True)
    heard(50)
    os.kill(pid, signal.SIGKILL)
    heard(len(calm))
    process.send_signal(signal.SIGINT)
    _, notes = process.communicate(timeout=100)
    assert said.read_bytes().startswith(calm[:-8]), "up to what the length cut"
    assert "the connection was lost; going on" in notes
    streams.ask(slow, "request.abort", all=True)  # what has outlived its frontend waits for its client


def test_an_interrupted_pipe_says_so(slow: Company) -> None:
    command = (*ACTORCTL, "chat", "on and on", "--name", slow.name, *LONG)
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.read(40)
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE) == 130
    _await_idle(slow)


def test_it_is_offered() -> None:
    assert "chat" in actorctl("--help").stdout


CREATED = {"type": "response.created", "sequence_number": 0, "response": {"id": "resp_1", "error": None}}


def test_an_answer_asks_for_what_it_has_not_seen() -> None:
    answer = Answer({"input": "hi"})
    assert answer.opening(1.0) == {"type": "response.create", "input": "hi"}
    assert answer.take(CREATED, 1.0) == ""
    delta = {"type": "response.output_text.delta", "sequence_number": 1, "delta": "Hello"}
    assert answer.take(delta, 2.0) == "Hello"
    assert answer.opening(1.0) == {"type": "response.resume", "response_id": "resp_1", "starting_after": 1}
    assert not answer.over and answer.summary == ""


@pytest.mark.parametrize(
    "event",
    [
        {"type": "error", "status": 400, "error": {"message": "No."}},
        {"type": "response.failed", "sequence_number": 3, "response": {"error": {"message": "No."}}},
    ],
)
def test_an_answer_that_fails_says_why(event: dict[str, object]) -> None:
    with pytest.raises(Refused, match=r"No\."):
        Answer({}).take(event, 1.0)
