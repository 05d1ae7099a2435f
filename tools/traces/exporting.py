"""Sends a company's finished requests to an OpenTelemetry collector, from a process of its own."""

from __future__ import annotations

import logging
import math
import time
from typing import Any

import click
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from tools.actorctl.target import FAILED, Ask, fail
from tools.traces.otel import Converter
from tools.traces.spans import Tapes

PATIENCE = 3.0
"""Seconds that the collector is waited for."""
TOGETHER = 512
"""Spans of one message to the collector."""


def run(ask: Ask, endpoint: str, interval: float, *, once: bool) -> None:
    """Export at each `interval` seconds, for ever or once."""
    logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)
    exporter: SpanExporter = OTLPSpanExporter(endpoint, timeout=PATIENCE)
    status = ask({"verb": "status"})
    converter = Converter(status["name"], status["model"])
    try:
        while True:
            _export(ask, exporter, converter, endpoint)
            if once:
                return
            time.sleep(interval)
    finally:
        exporter.shutdown()


def _export(ask: Ask, exporter: SpanExporter, converter: Converter, endpoint: str) -> None:
    parts: dict[str, list[bytes]] = {}

    def take(reply: dict[str, Any]) -> None:
        parts.setdefault(reply["actor"], []).append(reply["records"])

    clocks = ask({"verb": "trace.read"}, take, timeout=math.inf)
    spans = list(converter.spans(Tapes(parts), clocks["time_ns"] - clocks["monotonic_ns"]))
    for begin in range(0, len(spans), TOGETHER):
        if exporter.export(spans[begin : begin + TOGETHER]) is not SpanExportResult.SUCCESS:
            fail(f"the collector at {endpoint} does not take the spans.", FAILED)
    if spans:
        click.echo(f"{len(spans)} spans sent", err=True)
