"""Answers held to varied schemas fit them; the judge knows what does not."""

from __future__ import annotations

import collections

from tests.serving import serving
from tools.conformance.__main__ import CUT, INVALID, VALID, judge, run


def test_the_judge() -> None:
    schema = {"type": "array", "items": {"type": "integer", "minimum": 3}}
    assert judge(schema, "[3, 4]") == (VALID, "")
    assert judge(schema, "[2]")[0] == judge(schema, "[3")[0] == INVALID
    assert judge({"type": "string", "format": "ipv4"}, '"1.2.3"')[0] == INVALID


def test_answers_fit_their_schemas() -> None:
    with serving("--served-name", "conformance") as company:
        found = run(company.url.removesuffix("/v1"), range(24), 200)
    counts = collections.Counter(kind for kind, _ in found.values())
    assert set(counts) <= {VALID, CUT} and counts[VALID] >= 22, found
