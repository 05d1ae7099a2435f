"""Every verb of actorctl: what it prints in every format, its exit codes, its questions.

The verbs are those that the parser knows, and each has its case in `verb_cases`: one without fails here.
"""

from __future__ import annotations

import http.client
import http.server
import json
import re
import threading
import time
from collections.abc import Iterator
from typing import NoReturn

import click
import pytest
import yaml
from click.shell_completion import ShellComplete

from actors.frontend.admin_routes import ROUTES
from actors.frontend.operations import OPERATIONS
from runtime import admin
from tests.faults.stage import until
from tests.keyfile import keyfile
from tests.serving import ROOT, Company, actorctl, serving
from tests.streams import Stream, completion_id
from tests.tools.verb_cases import CASES, CLIENT, Case, Stand
from tools.actorctl.main import main
from tools.actorctl.output import FORMATS
from tools.actorctl.top import Screen

Verb = tuple[str, ...]
VERBS = tuple(CASES)


def _leaves(group: click.Group, words: Verb = ()) -> Iterator[tuple[Verb, click.Command]]:
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from _leaves(command, (*words, name))
        else:
            yield (*words, name), command


PARSED = dict(_leaves(main))


def _has(verb: Verb, option: str) -> bool:
    return any(option == parameter.name for parameter in PARSED[verb].params)


def _having(option: str) -> list[Verb]:
    return [verb for verb in VERBS if verb in PARSED and _has(verb, option)]


def _id(value: object) -> str:
    return " ".join(value) if isinstance(value, tuple) else str(value)


class _Collector(http.server.BaseHTTPRequestHandler):
    """Takes whatever is sent."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(200)
        self.send_header("content-type", "application/x-protobuf")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def collector() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Collector) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture(scope="module")
def stand(tmp_path_factory: pytest.TempPathFactory, collector: str) -> Iterator[Stand]:
    folder = tmp_path_factory.mktemp("verbs")
    keys, first = keyfile(folder, user=CLIENT), folder / "first"
    first.mkdir()
    (first / "adapter_config.json").write_text("{}")
    (first / "adapter_model.safetensors").write_bytes(b"first")
    options = ("--keys", str(keys), "--lora", f"first={first}", "--trace-sample", "1")
    with serving("--executor", "hash", *options) as company:
        yield Stand(company, folder, keys, collector)


@pytest.fixture(scope="module")
def fresh() -> Iterator[Company]:
    """One that nothing has been done to."""
    with serving("--executor", "hash", "--step-ms", "2") as company:
        yield company


def test_every_verb_has_a_case() -> None:
    assert PARSED.keys() == CASES.keys(), "add it to tests/tools/verb_cases.py"
    assert all(case.asks for verb, case in CASES.items() if _has(verb, "yes"))


def test_every_verb_and_every_name_stands_in_the_docs() -> None:
    text = (ROOT / "docs" / "operations.md").read_text().partition("## All verbs")[2].partition("\n## ")[0]
    rows = [
        [cell.strip() for cell in line.split("|")[1:4]] for line in text.splitlines() if line[:3] == "| `"
    ]
    assert sorted(row[0] for row in rows) == sorted(f"`{_id(verb)}`" for verb in PARSED)
    told = set(re.findall(r"/[a-z0-9_/]+", " ".join(row[1] for row in rows)))
    assert set(ROUTES) <= told <= {each.path for each in OPERATIONS}


def _command(stand: Stand, verb: Verb, *arguments: str) -> list[str]:
    named = ("--name", stand.company.name) if _has(verb, "timeout") else ()
    sure = ("-y",) if _has(verb, "yes") else ()
    return [*verb, *arguments, *sure, *named]


@pytest.mark.parametrize(
    ("verb", "output"),
    [(verb, output) for output in FORMATS for verb in _having("output") if verb != ("stop",)],
    ids=_id,
)
def test_what_it_prints(stand: Stand, verb: Verb, output: str) -> None:
    """All verbs in one format, then in the next, so that an understudy is there when one is killed again."""
    case = CASES[verb]
    case.before(stand)
    done = actorctl(*_command(stand, verb, *case.arguments(stand)), "-o", output)
    case.after(stand)
    assert done.returncode == 0, done.stderr
    _check(case, output, done.stdout, done.stderr)


def _check(case: Case, output: str, stdout: str, stderr: str) -> None:
    match output:
        case "json" | "yaml":
            document = json.loads(stdout) if output == "json" else yaml.safe_load(stdout)
            assert case.keys <= document.keys()
        case "name":
            assert re.fullmatch(case.name, stdout), stdout
        case _:
            assert case.table in stdout + stderr
            assert max(map(len, stdout.splitlines()), default=0) < 4096


@pytest.mark.parametrize(
    "verb", [verb for verb in VERBS if verb not in _having("output") and verb != ("serve",)], ids=_id
)
def test_what_those_print_that_have_one_form(stand: Stand, verb: Verb) -> None:
    case = CASES[verb]
    case.before(stand)
    done = actorctl(*_command(stand, verb, *case.arguments(stand)))
    assert done.returncode == 0, done.stderr
    assert case.table in done.stdout + done.stderr


@pytest.mark.parametrize("verb", [verb for verb, case in CASES.items() if case.wrong is not None], ids=_id)
def test_when_it_is_refused(stand: Stand, fresh: Company, verb: Verb) -> None:
    wrong = CASES[verb].wrong
    assert wrong is not None
    wrong.before(stand)
    arguments = (wrong.arguments or CASES[verb].arguments)(stand)
    command = _command(stand, verb, *arguments)
    if wrong.fresh:
        command[command.index(stand.company.name)] = fresh.name
    done = actorctl(*command)
    wrong.after(stand)
    assert (done.returncode, done.stdout) == (wrong.code, ""), done.stderr
    assert wrong.words in done.stderr
    assert wrong.code == 2 or done.stderr.splitlines()[-1].startswith("actorctl: ")


@pytest.mark.parametrize("verb", _having("timeout"), ids=_id)
def test_nobody_is_there(stand: Stand, verb: Verb) -> None:
    arguments = {
        ("request", "get"): ["1"],
        ("request", "abort"): ["1"],
        ("trace", "request"): ["1"],
    }.get(verb) or CASES[verb].arguments(stand)
    command = _command(stand, verb, *arguments)
    command[command.index(stand.company.name)] = "nobody-here"
    done = actorctl(*command)
    assert (done.returncode, done.stdout) == (69, "")
    assert done.stderr.startswith("actorctl: no company named nobody-here is running (")


@pytest.mark.parametrize("verb", VERBS, ids=_id)
def test_wrong_usage_is_told(verb: Verb) -> None:
    wrong = [["--no-such-option"]]
    wrong += [["-o", "xml"]] if _has(verb, "output") else []
    wrong += [["--timeout", "0"], ["--timeout", "soon"]] if _has(verb, "timeout") else []
    wrong += [[]] if any(each.required for each in PARSED[verb].params) else []
    for arguments in wrong:
        done = actorctl(*verb, *arguments)
        assert (done.returncode, done.stdout) == (2, ""), arguments
        assert done.stderr.startswith("Usage: ")
    told = actorctl(*verb, "--help")
    assert told.returncode == 0 and "Options:" in told.stdout
    assert PARSED[verb].help, "people want to know what it does"
    undescribed = [
        each.name for each in PARSED[verb].params if isinstance(each, click.Option) and not each.help
    ]
    assert undescribed in ([], ["executor", "step_ms"]), "those are for tests"


@pytest.mark.parametrize("group", [(), *sorted({verb[:1] for verb in PARSED if len(verb) > 1})], ids=_id)
def test_what_commands_do_is_said_in_a_line(group: Verb) -> None:
    told = actorctl(*group, "--help").stdout
    assert "Commands:" in told and "..." not in told.partition("Commands:")[2]


@pytest.mark.parametrize("verb", _having("yes"), ids=_id)
def test_what_cannot_be_undone_asks(stand: Stand, verb: Verb, monkeypatch: pytest.MonkeyPatch) -> None:
    before = stand.company.pids(), stand.company.status()["standing"]
    command = [*verb, *CASES[verb].asks, "--name", stand.company.name]
    elsewhere = actorctl(*command)
    assert (elsewhere.returncode, elsewhere.stdout) == (2, "") and "needs -y" in elsewhere.stderr
    monkeypatch.setattr("tools.actorctl.target.on_terminal", lambda: True)
    for typed, code, words in (("n\n", 1, "nothing was done"), ("", 130, "?")):
        done = actorctl(*command, typed=typed)
        assert done.returncode == code and words in done.stderr and "[y/N]" in done.stderr
    assert (stand.company.pids(), stand.company.status()["standing"]) == before
    CASES[verb].before(stand)
    assert actorctl(*command, typed="y\n").returncode == 0
    CASES[verb].after(stand)


@pytest.mark.parametrize("verb", _having("watch"), ids=_id)
def test_watching_looks_again_until_interrupted(
    stand: Stand, verb: Verb, monkeypatch: pytest.MonkeyPatch
) -> None:
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        if len(slept) == 3:
            raise KeyboardInterrupt

    once = actorctl(*verb, "--name", stand.company.name, "-o", "name")
    monkeypatch.setattr(time, "sleep", sleep)
    for option, seconds in (("-w", 2.0), ("--watch=0.5", 0.5)):
        slept.clear()
        done = actorctl(*verb, "--name", stand.company.name, "-o", "name", option)
        assert done.returncode == 130
        assert done.stdout == once.stdout * 3 and slept == [seconds] * 3


@pytest.mark.parametrize(
    ("words", "begun", "wanted"),
    [
        (("engine",), "re", ["release-memory", "resume", "resume-memory"]),
        (("actor", "kill"), "", ["executor.0", "scheduler.0", "tokenizer.0", "frontend.0"]),
        (("logs", "--actor"), "sch", ["scheduler.0"]),
        (("lora", "unload"), "", ["first"]),
        (("request", "abort"), "", []),
        (("status", "-o"), "j", ["json"]),
    ],
)
def test_names_are_completed(
    stand: Stand, monkeypatch: pytest.MonkeyPatch, words: Verb, begun: str, wanted: list[str]
) -> None:
    monkeypatch.setenv("TROUPE_NAME", stand.company.name)
    completion = ShellComplete(main, {}, "actorctl", "_ACTORCTL_COMPLETE")
    assert [item.value for item in completion.get_completions(list(words), begun)] == wanted
    monkeypatch.setenv("TROUPE_NAME", "nobody-here")
    alone = [item.value for item in completion.get_completions(list(words), begun)]
    assert alone == (wanted if words in (("engine",), ("status", "-o")) else [])
    named = completion.get_completions(["status", "--name"], stand.company.name[:9])
    assert stand.company.name in [item.value for item in named]


def test_whoever_mistakes_the_name_hears_of_those_there_are(stand: Stand) -> None:
    done = actorctl("status", "--name", "nobody-here")
    assert done.returncode == 69 and stand.company.name in done.stderr.partition("; there are ")[2]
    assert actorctl("status", "--name", "x" * 200).stderr.startswith("actorctl: no company named xxx")


@pytest.mark.parametrize(
    "command",
    [("trace", "record", "--duration", "10m", "-f"), ("keys", "add"), ("trace", "export", "--endpoint")],
)
def test_what_the_system_refuses_is_a_sentence(stand: Stand, command: Verb) -> None:
    where = {"keys": ["/nowhere/keys.toml", "name"]}.get(command[0], ["/nowhere/file"])
    target = ["--name", stand.company.name] if command[0] == "trace" else []
    completion_id(stand.company, CLIENT)
    done = actorctl(*command, *where, *target, *(["--once"] if "export" in command else []))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("actorctl: ") and len(done.stderr.splitlines()) == 1, done.stderr


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        ("policy=random", "actorctl: policy: must be one of fcfs, lpm, priority."),
        ("speculate_tokens=many", "actorctl: speculate_tokens: expected `int | null`, got `str`."),
        ("port=1", "actorctl: settings must be some of policy, "),
        ("policy", "Error: Invalid value for KEY=VALUE: 'policy' is not KEY=VALUE."),
    ],
)
def test_a_wrong_setting_is_named(stand: Stand, setting: str, sentence: str) -> None:
    done = actorctl("engine", "set", setting, "--name", stand.company.name)
    assert done.returncode == 2 and sentence in done.stderr


def test_options_are_shown_as_they_are_now(stand: Stand) -> None:
    ask = ("--name", stand.company.name)
    shown = dict(line.split(maxsplit=1) for line in actorctl("engine", "info", *ask).stdout.splitlines())
    assert (shown["policy"].strip(), shown["speculate_rows"].strip()) == ("fcfs", "24")
    assert shown["model"].strip().endswith("demo/model") and shown["draining"].strip() == "no"


def test_of_progress_only_the_latest_is_shown() -> None:
    def event(number: int, kind: str, actor: str) -> dict[str, object]:
        return {"number": number, "time": 0.0, "kind": kind, "actor": actor, "text": f"{actor} {number}"}

    screen = Screen()
    events = [event(1, "lost", "a"), event(2, "progress", "a"), event(3, "progress", "a")]
    screen.take({"status": {}, "events": [*events, event(4, "progress", "b")]})
    screen.take({"events": [event(5, "progress", "b"), event(6, "ready", "b")]})
    assert [each["number"] for each in screen.events] == [1, 3, 5, 6]


def test_whoever_waits_hears_how_far_it_is(fresh: Company) -> None:
    ask = ("--name", fresh.name)
    assert actorctl("engine", "slow-down", "1", *ask).returncode == 0
    stream = Stream(fresh, tokens=1000).begun()
    late = actorctl("engine", "drain", "--timeout", "0.2", *ask)
    assert late.returncode == 124
    assert late.stderr.splitlines() == [
        "waiting for 1 request to end",
        "actorctl: still open after 0.2 s: 1 request; no new ones are let in.",
    ]
    assert "(draining)" in actorctl("status", *ask).stdout
    assert actorctl("request", "abort", "--all", "-y", *ask).returncode == 0
    assert stream.done()[1] == "abort"
    for verb in (("resume",), ("slow-down", "0")):
        assert actorctl("engine", *verb, *ask).returncode == 0


def test_whoever_waits_for_what_is_paused_hears_why(fresh: Company) -> None:
    ask = ("--name", fresh.name)
    assert actorctl("engine", "pause", *ask).returncode == 0
    stream = Stream(fresh, tokens=5)
    until(lambda: actorctl("request", "list", "-o", "name", *ask).stdout, "it is open")
    late = actorctl("engine", "drain", "--timeout", "0.2", *ask)
    assert late.returncode == 124 and late.stderr.splitlines() == [
        "waiting for 1 request to end, while generation is paused (in_place)",
        "actorctl: still open after 0.2 s: 1 request; no new ones are let in."
        " They end once generation is resumed.",
    ]
    assert actorctl("engine", "resume", *ask).returncode == 0
    assert stream.done()[1] == "length"
    assert actorctl("request", "list", "-o", "name", *ask).stdout == ""


def test_whoever_stops_waiting_hears_that_it_goes_on(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> NoReturn:
        raise KeyboardInterrupt

    monkeypatch.setattr(admin, "ask", interrupted)
    for verb, words in (
        (("engine", "pause"), "actorctl: interrupted; the company goes on with what it was asked.\n"),
        (("status",), ""),
    ):
        done = actorctl(*verb, "--name", stand.company.name)
        assert (done.returncode, done.stdout, done.stderr) == (130, "", words)


def test_a_company_that_stops(fresh: Company) -> None:
    """The last of this company: it goes on to answer while it finishes what is open."""
    ask = ("--name", fresh.name)
    assert actorctl("engine", "pause", *ask).returncode == 0
    connection = http.client.HTTPConnection(fresh.host, fresh.port, timeout=60)
    body = json.dumps({"model": fresh.model, "prompt": "on and on", "max_tokens": 20})
    connection.request("POST", "/v1/completions", body, {"content-type": "application/json"})
    until(lambda: fresh.actor("frontend.0")["open_requests"], "it is open")
    for output in FORMATS:
        done = actorctl("stop", *ask, "-o", output)
        assert done.returncode == 0, done.stderr
        _check(CASES["stop",], output, done.stdout, done.stderr)
    unwell = actorctl("status", *ask)
    assert unwell.returncode == 3 and "stopping" in unwell.stdout
    refused = actorctl("actor", "kill", "-y", "tokenizer.0", *ask)
    assert refused.returncode == 5 and "the company is stopping" in refused.stderr
    assert actorctl("stop", "--now", *ask).returncode == 0
    assert fresh.process.wait(60) == 1
    connection.close()
    assert actorctl("stop", *ask).returncode == 69
