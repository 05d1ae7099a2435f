"""`python -m tools.conformance`: how many answers of the demo model fit the schemas that they were held to.

Every schema is asked for over HTTP at a temperature of 1, many at a time; `jsonschema` judges, with the
formats that it knows. An answer that `max_tokens` cuts off is told apart: it is no verdict on the grammar.
"""

from __future__ import annotations

import collections
import json
import sys
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import click

from tools.actorctl.serve import DEMO_MODEL
from tools.bench.serve import company
from tools.conformance.schemas import schema_of

VALID, CUT, REFUSED, INVALID = "valid", "cut off", "refused", "invalid"


def verdict(url: str, seed: int, tokens: int) -> tuple[str, str]:
    """What came of schema number `seed`, and what there is to say about it."""
    schema = schema_of(seed)
    body = {
        "model": "conformance",
        "prompt": "The JSON value: ",
        "max_tokens": tokens,
        "seed": seed,
        "guided_json": schema,
    }
    request = urllib.request.Request(
        f"{url}/v1/completions", json.dumps(body).encode(), {"content-type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=280) as answer:
            choice = json.load(answer)["choices"][0]
    except urllib.error.HTTPError as error:
        return REFUSED, f"{error.code} {error.read().decode()[:300]}"
    if choice["finish_reason"] != "stop":
        return CUT, choice["text"][-60:]
    return judge(schema, choice["text"])


def judge(schema: dict[str, Any], text: str) -> tuple[str, str]:
    """Whether a text is JSON that fits a schema, by `jsonschema`."""
    import jsonschema

    try:
        value = json.loads(text)
    except ValueError as error:
        return INVALID, f"no JSON ({error}): {text[:200]}"
    validator = jsonschema.Draft202012Validator(
        schema, format_checker=jsonschema.Draft202012Validator.FORMAT_CHECKER
    )
    errors = [error.message[:200] for error in validator.iter_errors(value)]
    return (INVALID, f"{errors}: {text[:200]}") if errors else (VALID, "")


def run(url: str, schemas: range, tokens: int, crowd: int = 16) -> dict[int, tuple[str, str]]:
    """The verdict on each of some schemas."""
    with ThreadPoolExecutor(crowd) as pool:
        found = pool.map(lambda seed: verdict(url, seed, tokens), schemas)
        return dict(zip(schemas, found, strict=True))


@click.command()
@click.option("--schemas", default=400, show_default=True)
@click.option("--first", default=0, show_default=True, help="Number of the first schema.")
@click.option("--tokens", default=600, show_default=True, help="Tokens of an answer at most.")
def main(schemas: int, first: int, tokens: int) -> None:
    """Tell how many answers fit their schema; ends with 1 if one does not."""
    arguments = [str(DEMO_MODEL), "--served-name", "conformance", "--max-running", "32"]
    with company(arguments) as address:
        found = run(f"http://{address.host}:{address.port}", range(first, first + schemas), tokens)
    counts = collections.Counter(kind for kind, _ in found.values())
    click.echo(", ".join(f"{kind}: {count}" for kind, count in sorted(counts.items())))
    for seed, (kind, told) in found.items():
        if kind != VALID:
            click.echo(f"{kind} {seed} {json.dumps(schema_of(seed))[:300]}\n    {told}")
    sys.exit(bool(counts[INVALID] or counts[REFUSED]))


if __name__ == "__main__":
    main()
