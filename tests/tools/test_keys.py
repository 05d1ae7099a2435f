"""`actorctl keys`: keys are made, listed and read again; a company behind them and behind TLS."""

from __future__ import annotations

import json
import pathlib
import ssl
import urllib.error
import urllib.request

from protocols.keys import digest_of, parse_keys
from tests.runtime.test_tls import CERT, KEY
from tests.serving import Company, actorctl, serving


def test_add_writes_the_hash_and_prints_the_key(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "keys.toml"
    options = ("--concurrency", "2", "--tokens-per-minute", "50", "--sockets", "3", "--lanes", "4")
    one = actorctl("keys", "add", str(file), "one", *options, "--private-cache")
    boss = actorctl("keys", "add", str(file), "the.boss", "--admin")
    assert one.returncode == boss.returncode == 0
    assert file.stat().st_mode & 0o777 == 0o600
    assert one.stdout.strip() not in file.read_text()
    first, second = parse_keys(file.read_text(), "f")[1]
    assert (first.name, first.digest) == ("one", digest_of(one.stdout.strip()))
    assert first.limits.__struct_fields__ == (
        "concurrency",
        "tokens_per_minute",
        "sockets",
        "lanes",
        "private_cache",
    )
    limits = first.limits
    assert (limits.concurrency, limits.tokens_per_minute, limits.sockets, limits.lanes) == (2, 50, 3, 4)
    assert limits.private_cache and not first.admin and second.admin
    before = file.read_text()
    assert actorctl("keys", "add", str(file), "one").returncode == 5
    assert actorctl("keys", "add", str(file), "a b").returncode == 1
    assert actorctl("keys", "add", str(file), 'a"]\n').returncode == 1
    assert file.read_text() == before


def status(company: Company, key: str) -> int:
    request = urllib.request.Request(f"{company.url}/models", headers={"authorization": f"Bearer {key}"})
    try:
        with urllib.request.urlopen(request, context=ssl.create_default_context(cafile=CERT)) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        error.close()
        return error.code


def test_a_company_reads_its_keys_again(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "keys.toml"
    one = actorctl("keys", "add", str(file), "one", "--concurrency", "2").stdout.strip()
    with serving("--executor", "hash", "--keys", str(file), "--tls-cert", CERT, "--tls-key", KEY) as company:
        assert company.status()["url"] == f"https://{company.host}:{company.port}"
        company = Secure(**vars(company))
        assert (status(company, one), status(company, "x")) == (200, 401)
        two = actorctl("keys", "add", str(file), "two").stdout.strip()
        assert status(company, two) == 401
        done = actorctl("keys", "reload", "--name", company.name)
        assert done.returncode == 0 and [line.split()[0] for line in done.stdout.splitlines()] == [
            "NAME",
            "one",
            "two",
        ]
        assert status(company, two) == 200
        file.write_text("[keys")
        done = actorctl("keys", "reload", "--name", company.name)
        assert done.returncode == 1 and "The keys are as they were." in done.stderr
        assert (status(company, one), status(company, two)) == (200, 200)
        listed = json.loads(actorctl("keys", "list", "--name", company.name, "-o", "json").stdout)["keys"]
        assert [(key["name"], key["concurrency"], key["running"]) for key in listed] == [
            ("one", 2, 0),
            ("two", 0, 0),
        ]
        company.kill("frontend.0")
        assert status(company, two) == 200
        assert company.stop() == 0


class Secure(Company):
    """A company behind TLS."""

    @property
    def url(self) -> str:
        """As `Company.url`."""
        return f"https://{self.host}:{self.port}/v1"
