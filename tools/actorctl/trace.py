"""`actorctl trace ...`: the life of one request, or of the whole company, and where to send it."""

from __future__ import annotations

import errno
import json
import math
import os
import pathlib
from collections import defaultdict
from typing import Any

import click

from tools.actorctl.output import Heading, done, output_option, show
from tools.actorctl.target import NOT_FOUND, Ask, administers, fail
from tools.traces import life, perfetto
from tools.traces.spans import Tapes

_HEADINGS: tuple[Heading, ...] = (
    ("at", "AT MS"),
    ("took", "TOOK MS"),
    ("actor", "ACTOR"),
    ("what", "WHAT"),
    ("more", ""),
)
_WIDE: tuple[Heading, ...] = (("incarnation", "INCARNATION"), ("choice", "CHOICE"))
_FILE = click.Path(dir_okay=False, writable=True, path_type=pathlib.Path)


@click.group()
def trace() -> None:
    """See the life of a request, or record the whole company."""


@trace.command()
@click.argument("id")
@click.option("-f", "--file", type=_FILE, help="Also write a trace for https://ui.perfetto.dev.")
@output_option
@administers
def request(ask: Ask, id: str, file: pathlib.Path | None, output: str) -> None:
    """Print the life of a traced request. Also when it is over, while the actors' tapes still have it.

    ID is the x-request-id of its answer, the id of a completion or a response, its trace id, or a choice's
    number. `wide` lists every step. The client's traceparent decides whether a request is traced, else
    --trace-sample.
    """
    tapes, _ = _read(ask, {"verb": "trace.read"})
    rids = tapes.find(id)
    if not rids:
        fail(f"nothing is known of {id}: it was not traced, or the tapes have forgotten it.", NOT_FOUND)
    spans = tapes.life(rids)
    if file is not None:
        file.write_text(json.dumps(perfetto.document(spans)))
        click.echo(f"{file}: {len(spans)} spans", err=True)
    told = life.document(spans)
    if output in ("table", "wide"):
        choices = ", ".join(map(str, told["choices"]))
        click.echo(f"trace {told['trace'] or 'without an id'}, choice {choices}\n")
    rows = told["spans"] if output == "wide" else list(life.shortened(told["spans"]))
    rows = [{**row, "name": f"{row['actor']} {row['what']}"} for row in rows]
    show(told, rows, output, headings=_HEADINGS, wide=_WIDE)


@trace.command()
@click.option("--duration", default="10s", show_default=True, help="How long, as 10s or 1m; 10m at most.")
@click.option("-f", "--file", type=_FILE, required=True, help="Where the trace goes.")
@output_option
@administers
def record(ask: Ask, duration: str, file: pathlib.Path, output: str) -> None:
    """Trace all that the company does for a while. The file is for https://ui.perfetto.dev."""
    if not file.absolute().parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(file))
    asked = {"verb": "trace.record", "seconds": _seconds(duration)}
    tapes, lost = _read(ask, asked)
    file.write_text(json.dumps(perfetto.document(tapes.spans)))
    found = {
        "file": str(file),
        "spans": len(tapes.spans),
        "choices": len(tapes.choices()),
        "lost_bytes": lost,
    }
    done(found, output, str(file), f"{file}: {found['spans']} spans of {found['choices']} choices")
    if lost:
        click.echo(f"{lost} bytes of spans were overwritten before they were read", err=True)


@trace.command()
@click.argument("share", type=click.FloatRange(0, 1))
@output_option
@administers
def sample(ask: Ask, share: float, output: str) -> None:
    """Trace this SHARE of the requests from now on. 1 for all; instead of what --trace-sample says."""
    reply = ask({"verb": "trace.sample", "share": share})
    done(reply, output, f"{share:g}", f"{100 * share:g} % of the requests are traced from now on")


@trace.command()
@click.option("--endpoint", default="http://127.0.0.1:4318", show_default=True, help="OTLP over HTTP.")
@click.option("--interval", type=click.FloatRange(0.1, 60), default=1.0, show_default=True, help="Seconds.")
@click.option("--once", is_flag=True, help="Send what there is, and end.")
@administers
def export(ask: Ask, endpoint: str, interval: float, once: bool) -> None:
    """Send finished requests to an OpenTelemetry collector. Until interrupted; needs the extra `otel`."""
    try:
        from tools.traces.exporting import run
    except ImportError:
        fail("this needs OpenTelemetry's SDK: pip install -e '.[otel]'.", 1)
    run(ask, f"{endpoint.rstrip('/')}/v1/traces", interval, once=once)


def _read(ask: Ask, asked: dict[str, Any]) -> tuple[Tapes, int]:
    """What the supervisor sends of the tapes, and how much of it was lost."""
    parts: defaultdict[str, list[bytes]] = defaultdict(list)
    lost = 0

    def take(reply: dict[str, Any]) -> None:
        nonlocal lost
        parts[reply["actor"]].append(reply["records"])
        lost += reply["lost_bytes"] if asked["verb"] == "trace.record" else 0

    ask(asked, take, timeout=math.inf)
    return Tapes(parts), lost


def _seconds(text: str) -> float:
    """10s, 1m, 500ms. Raises BadParameter."""
    for unit, factor in (("ms", 0.001), ("s", 1.0), ("m", 60.0), ("", 1.0)):
        number = text.removesuffix(unit) if unit else text
        if text.endswith(unit) and number.replace(".", "", 1).isdecimal():
            return float(number) * factor
    raise click.BadParameter(f"{text!r} is no duration, as 10s is.", param_hint="--duration")
