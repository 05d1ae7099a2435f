"""`python -m tools.attack timing`: can a stranger tell from the time to the first token what others asked?

A victim asks half of the prompts; then a stranger asks all of them in random order and takes the times. AUC
is how often a prompt that the victim had asked was answered sooner than one that nobody had: 1 tells them
apart, 0.5 is a guess. Without salts the stranger should see it (else the probe is blind), with them not.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Any

import click
import trio

from protocols.keys import digest_of
from tools.chaos import http
from tools.chaos.company import Company, company

BLIND = 0.55
"""AUC up to which the stranger sees nothing."""
_KEYS = """[keys.{name}]
sha256 = "{digest}"
private_cache = {private}
"""


@dataclasses.dataclass(frozen=True)
class Case:
    """Who asks with which key and salt; secret: whether the stranger must see nothing."""

    name: str
    secret: bool
    victim: str = "shared"
    stranger: str = "other"
    victims_salt: str = ""
    strangers_salt: str = ""


CASES = (
    Case("nothing apart: the probe itself", secret=False),
    Case("`cache_salt`", secret=True, victims_salt="a", strangers_salt="b"),
    Case("`cache_salt` of the victim alone", secret=True, victims_salt="a"),
    Case("`private_cache` of both keys", secret=True, victim="private", stranger="private2"),
    Case("`private_cache` of the victim's key alone", secret=True, victim="private"),
)
KEYS = {"shared": False, "other": False, "private": True, "private2": True}


def auc(sooner: Sequence[float], later: Sequence[float]) -> float:
    """How often a value of `sooner` lies below one of `later`; ties count half."""
    wins = sum((a < b) + (a == b) / 2 for a in sooner for b in later)
    return wins / (len(sooner) * len(later))


@dataclasses.dataclass(frozen=True)
class Finding:
    """One case's result. auc: by times; cached: tokens that the stranger was told the cache had, of prompts
    that only the victim had asked."""

    case: Case
    auc: float
    cached: int

    @property
    def wrong(self) -> bool:
        """Whether the stranger saw something, or the probe saw nothing where there is something to see."""
        return (self.cached > 0 or self.auc > BLIND) if self.case.secret else not self.cached


async def probe(subject: Company, case: Case, *, prompts: int, words: int, seed: int) -> Finding:
    """One case: the victim asks, then the stranger, one request at a time."""
    rng = random.Random(f"{seed}/{case.name}")
    texts = [f"{rng.getrandbits(60)} " + " ".join(rng.choices(_WORDS, k=words)) for _ in range(prompts)]
    asked = texts[: prompts // 2]
    for text in asked:
        await _ask(subject, text, case.victim, case.victims_salt)
    order = rng.sample(texts, len(texts))
    times, cached = {}, 0
    for text in order:
        times[text], hit = await _ask(subject, text, case.stranger, case.strangers_salt)
        cached += hit
    hits = [times[text] for text in asked]
    return Finding(case, auc(hits, [times[text] for text in texts[prompts // 2 :]]), cached)


_WORDS = "the a red blue small old river house sum name count story list of and with over under".split()


async def _ask(subject: Company, text: str, key: str, salt: str) -> tuple[float, int]:
    """Seconds to the first and only token, and prompt tokens from the cache."""
    body: dict[str, Any] = {"model": subject.model, "prompt": text, "max_tokens": 1, "ignore_eos": True}
    if salt:
        body["cache_salt"] = salt
    began = time.perf_counter()
    headers = (("authorization", f"Bearer {key}"),)
    async with http.request(subject.host, subject.port, "POST", "/v1/completions", body, headers) as answer:
        document = json.loads(await answer.whole())
    seconds = time.perf_counter() - began
    details = document["usage"]["prompt_tokens_details"]
    return seconds, details["cached_tokens"]


def key_file(folder: pathlib.Path) -> str:
    """A file with the keys of the cases, each called as its name."""
    tables = [
        _KEYS.format(name=name, digest=digest_of(name), private=str(private).lower())
        for name, private in KEYS.items()
    ]
    path = folder / "keys.toml"
    path.write_text("\n".join(tables))
    return str(path)


@click.command()
@click.option("--prompts", default=200, show_default=True, help="Of a case; the victim asks half of them.")
@click.option("--words", default=150, show_default=True, help="Words of a prompt.")
@click.option("--seed", default=0, show_default=True)
@click.argument("options", nargs=-1)
def timing(options: Sequence[str], **case: int) -> None:
    """Measure what the prefix cache betrays. OPTIONS after `--` go to `actorctl serve`. Exits 1 if so."""

    async def main(subject: Company) -> list[Finding]:
        await subject.ready()
        await probe(subject, CASES[0], **{**case, "prompts": 20, "seed": -1})
        return [await probe(subject, each, **case) for each in CASES]

    with (
        tempfile.TemporaryDirectory() as folder,
        company(("--keys", key_file(pathlib.Path(folder)), *options)) as subject,
    ):
        findings = trio.run(main, subject)
        left = subject.end()
    click.echo("| kept apart by | AUC | tokens said to be cached |\n|---|---|---|")
    for found in findings:
        click.echo(f"| {found.case.name} | {found.auc:.2f} | {found.cached} |")
    click.echo("\n".join(left))
    sys.exit(bool(left) or any(found.wrong for found in findings))
