"""The checker: receipts of a run under faults against the same requests answered in peace."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence

from tools.chaos.clients import Receipt
from tools.chaos.nemesis import Fault


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What is wrong with one receipt."""

    index: int
    what: str


def check(receipt: Receipt, peace: Receipt) -> list[Verdict]:
    """Everything in which a receipt differs from the one taken without faults."""
    if receipt.error:
        return [Verdict(receipt.index, f"error: {receipt.error}")]
    found = []
    if receipt.texts != peace.texts:
        found.append(_difference(receipt, peace))
    if receipt.kind == "responses" and receipt.numbers != list(range(len(receipt.numbers))):
        found.append(f"sequence numbers are not contiguous: {receipt.numbers}")
    if receipt.finishes != peace.finishes and sorted(receipt.finishes) != sorted(peace.finishes):
        found.append(f"finished {receipt.finishes}, not {peace.finishes}")
    if receipt.tokens != peace.tokens:
        found.append(f"usage says {receipt.tokens} tokens, not {peace.tokens}")
    if not _same_logprobs(receipt.logprobs, peace.logprobs):
        found.append("logprobs differ")
    return [Verdict(receipt.index, what) for what in found]


def _difference(receipt: Receipt, peace: Receipt) -> str:
    for choice, text in peace.texts.items():
        seen = receipt.texts.get(choice, "")
        if seen != text:
            at = next(
                (i for i, (a, b) in enumerate(zip(seen, text, strict=False)) if a != b),
                min(len(seen), len(text)),
            )
            kind = "lost" if text.startswith(seen) else "duplicated" if seen.startswith(text) else "wrong"
            return f"choice {choice}: text {kind} at {at}: {seen[at : at + 40]!r}, not {text[at : at + 40]!r}"
    return "a choice that nobody asked for"


def _same_logprobs(seen: Sequence[dict[str, object]], peace: Sequence[dict[str, object]]) -> bool:
    """The same tokens with the same probabilities within 1e-3 (float32 sums differ with the batch)."""
    if [entry["token"] for entry in seen] != [entry["token"] for entry in peace]:
        return False
    return all(
        abs(float(str(a["logprob"])) - float(str(b["logprob"]))) < 1e-3
        for a, b in zip(seen, peace, strict=True)
    )


def recoveries(faults: Sequence[Fault], receipts: Sequence[Receipt]) -> list[float]:
    """For each kill and each stream that was open then: seconds from the kill to the end of the pause that it
    caused, the longest gap between two arrivals that begins near it. Streams that show no gap beyond
    twice their usual one did not notice, and count with their next arrival."""
    found = []
    for fault in faults:
        if fault.kind != "kill":
            continue
        for receipt in receipts:
            arrivals = receipt.arrivals
            if len(arrivals) > 1 and arrivals[0] < fault.at < arrivals[-1]:
                found.append(_pause(fault.at, arrivals))
    return found


def _pause(at: float, arrivals: Sequence[float]) -> float:
    near = [
        (late - early, late) for early, late in itertools.pairwise(arrivals) if late > at and early < at + 0.3
    ]
    return max(near)[1] - at
