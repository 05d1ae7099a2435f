"""Metrics, traces and logs of a real company: over HTTP, and by actorctl."""

from __future__ import annotations

import http.server
import json
import pathlib
import re
import secrets
import subprocess
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from prometheus_client.parser import text_string_to_metric_families

from tests.faults.stage import until
from tests.serving import ACTORCTL, ROOT, Company, actorctl, serving

pytestmark = pytest.mark.timeout(300)

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
CALLER = "00f067aa0ba902b7"
DASHBOARD = ROOT / "docs" / "grafana.json"


@pytest.fixture(scope="module")
def company() -> Iterator[Company]:
    with serving("--executor", "hash", "--log-format", "json") as running:
        yield running


@pytest.fixture(scope="module")
def locked() -> Iterator[Company]:
    with serving("--executor", "hash", "--api-key", "client", "--trace-sample", "1") as running:
        yield running


def generate(
    company: Company, *, trace: str = "", tokens: int = 8, key: str = ""
) -> tuple[dict[str, Any], Any]:
    """Ask for a completion; its document and the answer's headers."""
    headers = {"content-type": "application/json"}
    headers |= {"traceparent": trace} if trace else {}
    headers |= {"authorization": f"Bearer {key}"} if key else {}
    body = {"model": company.model, "prompt": "Once upon a time", "max_tokens": tokens, "ignore_eos": True}
    asked = urllib.request.Request(f"{company.url}/completions", json.dumps(body).encode(), headers)
    with urllib.request.urlopen(asked, timeout=120) as answer:
        return json.load(answer), answer.headers


def ctl(company: Company, *arguments: str) -> subprocess.CompletedProcess[str]:
    return actorctl(*arguments, "--name", company.name, "--timeout", "60")


def exported(company: Company) -> dict[str, Any]:
    """The families that /metrics tells, read by Prometheus's own parser."""
    with urllib.request.urlopen(company.url.removesuffix("v1") + "metrics", timeout=60) as answer:
        assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
        return {family.name: family for family in text_string_to_metric_families(answer.read().decode())}


def value(company: Company, name: str, **labels: str) -> float:
    """The sum of the samples of this name that have these labels."""
    samples = [sample for family in exported(company).values() for sample in family.samples]
    return sum(s.value for s in samples if s.name == name and labels.items() <= s.labels.items())


def replace(company: Company, name: str) -> None:
    """Kill an actor, and wait for its successor."""
    before = company.actor(name)["incarnation"]
    company.kill(name)

    def is_back() -> bool:
        actor = company.actor(name)
        return actor["incarnation"] > before and actor["state"] == "ready"

    until(is_back, f"the next {name}")


def settled(company: Company) -> None:
    """Wait until the scheduler has heard that nobody runs."""
    until(lambda: not value(company, "troupe:num_requests_running"), "nobody runs")


# --- metrics


def test_counts_and_times_of_what_was_served(company: Company) -> None:
    before = value(company, "troupe:generation_tokens_total")
    served = value(company, "troupe:request_success_total", finished_reason="length")
    generate(company, tokens=400)
    settled(company)
    assert value(company, "troupe:generation_tokens_total") - before >= 400
    assert value(company, "troupe:request_success_total", finished_reason="length") == served + 1
    families = exported(company)
    for name in (
        "time_to_first_token_seconds",
        "inter_token_latency_seconds",
        "e2e_request_latency_seconds",
        "request_queue_time_seconds",
        "request_prefill_time_seconds",
        "request_decode_time_seconds",
        "iteration_tokens_total",
    ):
        family = families[f"troupe:{name}"]
        buckets = [s.value for s in family.samples if s.name.endswith("_bucket")]
        (count,) = [s.value for s in family.samples if s.name.endswith("_count")]
        assert buckets == sorted(buckets) and buckets[-1] == count > 0, name
        assert next(s.value for s in family.samples if s.name.endswith("_sum")) > 0
        assert all(s.labels["model_name"] == company.model for s in family.samples)


def documented() -> dict[str, tuple[str, set[str]]]:
    """Type and labels of every metric in the table of docs/operations.md."""
    text = (ROOT / "docs" / "operations.md").read_text()
    table = text.partition("| metrics | type |")[2].partition("\n\n")[0]
    rows = [line.strip("|").split("|") for line in table.splitlines()[2:]]
    return {
        name: (kind.strip(), {"model_name", *re.findall(r"`(\w+)`", labels)})
        for names, kind, labels in rows
        for name in re.findall(r"`(\w+)`", names)
    }


def test_what_is_exported_is_what_is_documented(company: Company) -> None:
    wanted = documented()
    families = ctl_metrics(company)
    assert {name.removeprefix("troupe:") for name in families} == set(wanted)
    for name, family in families.items():
        kind, labels = wanted[name.removeprefix("troupe:")]
        assert family["type"] == kind, name
        assert family["help"].endswith("."), name
        for sample in family["samples"]:
            assert set(sample["labels"]) - {"le"} == labels, name


def ctl_metrics(company: Company) -> dict[str, Any]:
    """The same as values, by name."""
    told = json.loads(ctl(company, "metrics", "-o", "json").stdout)["metrics"]
    return {family["name"]: family for family in told}


INTERFACE = """
num_requests_running num_requests_waiting kv_cache_usage_perc num_preemptions_total prompt_tokens_total
prompt_tokens_cached_total generation_tokens_total request_success_total prefix_cache_queries_total
prefix_cache_hits_total time_to_first_token_seconds inter_token_latency_seconds e2e_request_latency_seconds
request_queue_time_seconds request_prefill_time_seconds request_decode_time_seconds iteration_tokens_total
lora_requests_info websocket_connections_active actor_restarts_total recovery_seconds actor_ring_depth_bytes
replayed_tokens_total
""".split()
"""What vLLM's dashboards ask for, and what is ours."""


def test_every_name_of_the_interface_is_there(company: Company) -> None:
    assert set(INTERFACE) <= set(documented())
    typed = {name: family.type for name, family in exported(company).items()}
    for name in INTERFACE:
        kind = documented()[name][0]
        family = name.removesuffix("_total") if kind == "counter" else name
        assert typed[f"troupe:{family}"] == kind, "read by Prometheus's own parser"


def test_the_dashboard_asks_for_nothing_that_is_not_exported(company: Company) -> None:
    text = DASHBOARD.read_text()
    asked = set(re.findall(r"troupe:[a-z0-9_]+", text))
    exact = {sample.name for family in exported(company).values() for sample in family.samples}
    assert len(asked) > 15
    assert asked <= exact
    assert all(panel.get("title") for panel in json.loads(text)["panels"])


def test_actorctl_prints_the_same(company: Company) -> None:
    told = ctl(company, "metrics")
    assert told.returncode == 0
    names = {family.name for family in text_string_to_metric_families(told.stdout)}
    assert names == set(exported(company))


def test_counters_go_on_when_an_actor_dies(company: Company) -> None:
    generate(company, tokens=30)
    settled(company)
    tokens = value(company, "troupe:generation_tokens_total")
    recoveries = value(company, "troupe:recovery_seconds_count")
    replace(company, "scheduler.0")
    generate(company, tokens=10)
    settled(company)
    assert value(company, "troupe:generation_tokens_total") >= tokens + 10
    assert value(company, "troupe:recovery_seconds_count") > recoveries
    assert value(company, "troupe:actor_restarts_total", actor="scheduler.0") >= 1


def test_who_may_read_them(locked: Company) -> None:
    where = locked.url.removesuffix("v1") + "metrics"
    for headers, status in (
        ({}, 401),
        ({"authorization": "Bearer client"}, 403),
        ({"origin": "http://evil.example"}, 403),
        ({"host": "evil.example"}, 403),
    ):
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(urllib.request.Request(where, headers=headers), timeout=60)
        assert refused.value.code == status
        refused.value.close()


# --- traces


def test_the_life_of_a_request(company: Company, tmp_path: pathlib.Path) -> None:
    document, headers = generate(company, trace=f"00-{TRACE}-{CALLER}-01", tokens=200)
    assert re.fullmatch(f"00-{TRACE}-[0-9a-f]{{16}}-01", headers["traceparent"])
    file = tmp_path / "life.json"
    for id in (TRACE, headers["x-request-id"], document["id"]):
        told = ctl(company, "trace", "request", id, "-o", "json", "-f", str(file))
        assert told.returncode == 0, told.stderr
        life = json.loads(told.stdout)
        assert life["trace"] == TRACE
    seen = [(span["actor"], span["what"]) for span in life["spans"]]
    for hop in (
        ("frontend.0", "begin"),
        ("tokenizer.0", "encode"),
        ("scheduler.0", "queue"),
        ("scheduler.0", "prefill"),
        ("executor.0", "step"),
        ("tokenizer.0", "detokenise"),
        ("frontend.0", "socket"),
        ("frontend.0", "request"),
    ):
        assert hop in seen
    decoded = [span for span in life["spans"] if span["what"] in ("decode", "prefill")]
    assert life["summary"]["steps"] == len(decoded)
    events = json.loads(file.read_text())["traceEvents"]
    names = {event["args"]["name"] for event in events if event["name"] == "process_name"}
    assert names == {"frontend.0", "tokenizer.0", "scheduler.0", "executor.0"}
    starts = {event["id"]: event for event in events if event["ph"] == "s"}
    ends = {event["id"]: event for event in events if event["ph"] == "f"}
    assert starts.keys() == ends.keys() and len(starts) >= 6
    assert all(starts[id]["ts"] <= ends[id]["ts"] for id in starts)
    hops = {(starts[id]["pid"], ends[id]["pid"]) for id in starts}
    assert len(hops) >= 5, "frontend, tokenizer, scheduler, executor, and back"


def test_a_life_in_a_table(company: Company) -> None:
    _, headers = generate(company, trace=f"00-{secrets.token_hex(16)}-{CALLER}-01", tokens=400)
    table = ctl(company, "trace", "request", headers["x-request-id"])
    assert table.returncode == 0
    assert "AT MS" in table.stdout and "more:" in table.stdout
    wide = ctl(company, "trace", "request", headers["x-request-id"], "-o", "wide")
    assert len(wide.stdout.splitlines()) > len(table.stdout.splitlines())


def test_what_is_not_traced_is_not_known(company: Company) -> None:
    _, headers = generate(company, trace=f"00-{secrets.token_hex(16)}-{CALLER}-00")
    for id in (headers["x-request-id"], "resp_1_" + "0" * 32, "99", "nothing"):
        told = ctl(company, "trace", "request", id)
        assert (told.returncode, told.stdout) == (4, "")
        assert "nothing is known" in told.stderr


def test_a_trace_outlives_the_actors(company: Company) -> None:
    _, headers = generate(company, trace=f"00-{secrets.token_hex(16)}-{CALLER}-01")
    for name in ("scheduler.0", "tokenizer.0", "frontend.0", "executor.0"):
        replace(company, name)
    told = ctl(company, "trace", "request", headers["x-request-id"], "-o", "json")
    actors = {span["actor"] for span in json.loads(told.stdout)["spans"]}
    assert actors == {"frontend.0", "tokenizer.0", "scheduler.0", "executor.0"}


def test_sampling_is_changed_while_it_runs(locked: Company) -> None:
    document, headers = generate(locked, key="client")
    assert headers["traceparent"].endswith("-01")
    assert headers["x-request-id"].removeprefix("req_") in (
        document["id"],
        headers["traceparent"].split("-")[1],
    )
    assert ctl(locked, "trace", "request", headers["x-request-id"], "-o", "name").returncode == 0
    assert ctl(locked, "trace", "sample", "0").returncode == 0
    replace(locked, "frontend.0")
    _, headers = generate(locked, key="client")
    assert headers["traceparent"].endswith("-00")
    assert ctl(locked, "trace", "request", headers["x-request-id"]).returncode == 4
    assert ctl(locked, "trace", "sample", "2").returncode == 2


def test_the_whole_company_is_recorded(company: Company, tmp_path: pathlib.Path) -> None:
    file = tmp_path / "out.json"
    command = [*ACTORCTL, "trace", "record", "--duration", "4s", "-f", str(file), "--name", company.name]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as recording:
        while recording.poll() is None:
            generate(company, tokens=5)
        assert recording.returncode == 0
    events = json.loads(file.read_text())["traceEvents"]
    kinds = {event["name"] for event in events if event["ph"] == "X"}
    assert {"begin", "encode", "queue", "prefill", "step", "turn", "detokenise", "socket", "request"} <= kinds
    _, headers = generate(company)
    assert ctl(company, "trace", "request", headers["x-request-id"]).returncode == 4, "it is off again"
    assert ctl(company, "trace", "record", "--duration", "soon", "-f", str(file)).returncode == 2


class _Collector(http.server.BaseHTTPRequestHandler):
    """Takes OTLP over HTTP."""

    taken: list[Any] = []

    def do_POST(self) -> None:
        message = ExportTraceServiceRequest()
        message.ParseFromString(self.rfile.read(int(self.headers["content-length"])))
        self.taken.append((self.path, message))
        self.send_response(200)
        self.send_header("content-type", "application/x-protobuf")
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        pass


def test_opentelemetry_gets_finished_requests(company: Company) -> None:
    trace = secrets.token_hex(16)
    generate(company, trace=f"00-{trace}-{CALLER}-01", tokens=7)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Collector) as collector:
        threading.Thread(target=collector.serve_forever, daemon=True).start()
        done = ctl(
            company, "trace", "export", "--once", "--endpoint", f"http://127.0.0.1:{collector.server_port}"
        )
        collector.shutdown()
    assert done.returncode == 0, done.stderr
    assert {path for path, _ in _Collector.taken} == {"/v1/traces"}
    spans = [
        span
        for _, message in _Collector.taken
        for resource in message.resource_spans
        for scope in resource.scope_spans
        for span in scope.spans
        if span.trace_id.hex() == trace
    ]
    (root,) = [span for span in spans if span.parent_span_id.hex() == CALLER]
    attributes = {each.key: each.value for each in root.attributes}
    assert root.name == f"generate {company.model}"
    assert attributes["gen_ai.request.model"].string_value == company.model
    assert attributes["gen_ai.usage.output_tokens"].int_value == 7
    parts = {span.name for span in spans if span.parent_span_id == root.span_id}
    assert {"encode", "queue", "prefill", "decode"} <= parts
    assert root.start_time_unix_nano > 1_600_000_000 * 10**9


# --- logs


def events(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_logs_of_all_and_of_one(company: Company) -> None:
    replace(company, "executor.0")
    everything = events(ctl(company, "logs", "--format", "json").stdout)
    assert {"supervisor"} <= {line["actor"] for line in everything}
    assert any(line["event"] == "actor lost" and line["name"] == "executor.0" for line in everything)
    times = [line["timestamp"] for line in everything]
    assert times == sorted(times)
    one = events(ctl(company, "logs", "--actor", "supervisor", "-n", "1").stdout)
    assert [line["actor"] for line in one] == ["supervisor"]
    assert "actor lost" in ctl(company, "logs", "--format", "console").stdout
    assert ctl(company, "logs", "--actor", "nobody").returncode == 4


def test_logs_are_followed(company: Company) -> None:
    command = [*ACTORCTL, "logs", "-f", "-n", "1", "--actor", "supervisor", "--name", company.name]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as following:
        assert following.stdout is not None
        try:
            following.stdout.readline()
            replace(company, "tokenizer.0")
            lines = (json.loads(line) for line in following.stdout)
            lost = next(line for line in lines if line["event"] == "actor lost")
            assert (lost["actor"], lost["name"]) == ("supervisor", "tokenizer.0")
        finally:
            following.terminate()


def test_levels_change_while_it_runs(company: Company) -> None:
    assert ctl(company, "log-level", "error", "--actor", "supervisor").returncode == 0
    before = len(events(ctl(company, "logs", "--actor", "supervisor", "-n", "100000").stdout))
    replace(company, "tokenizer.0")
    assert len(events(ctl(company, "logs", "--actor", "supervisor", "-n", "100000").stdout)) == before
    assert ctl(company, "log-level", "default").returncode == 0
    replace(company, "tokenizer.0")
    assert len(events(ctl(company, "logs", "--actor", "supervisor", "-n", "100000").stdout)) > before
    assert ctl(company, "log-level", "loud").returncode == 2


def test_top_shows_the_watched_company(company: Company) -> None:
    document = json.loads(ctl(company, "top", "-o", "json", "--interval", "0.2").stdout)
    scheduler = next(actor for actor in document["actors"] if actor["kind"] == "scheduler")
    assert scheduler["token_rate"] >= 0 and "/" in scheduler["pages"]
    assert "TOK/S" in ctl(company, "top", "--interval", "0.2").stdout
