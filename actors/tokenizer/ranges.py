"""Regular expressions of JSON numbers that come to an end, within bounds or without.

A number may have as many digits as what programs write: a double of which nothing is lost, as Python, C or
JavaScript write it, and whole numbers of 128 bits.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from decimal import Decimal

WHOLE_DIGITS, FRACTION_DIGITS, EXPONENT_DIGITS = 40, 22, 3

_WHOLE = f"(0|[1-9][0-9]{{0,{WHOLE_DIGITS - 1}}})"
_FRACTION = rf"(\.[0-9]{{1,{FRACTION_DIGITS}}})?"
INTEGER = f"-?{_WHOLE}"
NUMBER = f"{INTEGER}{_FRACTION}([eE][+-]?[0-9]{{1,{EXPONENT_DIGITS}}})?"

Bound = tuple[Decimal, bool]
"""A limit, and whether it is within."""


def within(low: Bound | None, high: Bound | None, *, integer: bool) -> str:
    """A terminal of Lark for the numbers between two limits, written without an exponent. ValueError where
    there is none."""
    if low and high and not _meet(low, high, integer=integer):
        raise ValueError("no number lies between these limits")
    form = _WHOLE if integer else _WHOLE + _FRACTION
    parts = []
    if high is None or high[0] > 0 or (high[0] == 0 and high[1]):
        parts.append(_absolute(form, low if low and low[0] >= 0 else None, high))
    if low is None or low[0] < 0:
        parts.append(
            '"-" ' + _absolute(form, _opposite(high) if high and high[0] <= 0 else None, _opposite(low))
        )
    return " | ".join(parts)


def _meet(low: Bound, high: Bound, *, integer: bool) -> bool:
    """Whether there is a number between them."""
    if not integer:
        return low[0] < high[0] or (low == high and low[1])
    first, last = math.ceil(low[0]), math.floor(high[0])
    first += first == low[0] and not low[1]
    last -= last == high[0] and not high[1]
    return first <= last


def _opposite(bound: Bound | None) -> Bound | None:
    return bound and (-bound[0], bound[1])


def _absolute(form: str, low: Bound | None, high: Bound | None) -> str:
    """Numbers without a sign, as an expression of a terminal."""
    limits = [low and _at_least(*low), high and _at_most(*high)]
    return "(" + " & ".join(f"/{part}/" for part in (form, *limits) if part) + ")"


def _digits(value: Decimal) -> tuple[str, str]:
    """Those before the point and those behind it, without zeros at the end."""
    whole, _, fraction = format(value, "f").partition(".")
    if len(whole) > WHOLE_DIGITS:
        raise ValueError("a limit has too many digits")
    return whole, fraction.rstrip("0")


def _at_least(value: Decimal, inclusive: bool) -> str:
    whole, fraction = _digits(value)
    longer = rf"[1-9][0-9]{{{len(whole)},}}(\.[0-9]+)?"
    larger = (f"{head}{rest}" + r"(\.[0-9]+)?" for head, rest in _beside(whole, up=True))
    behind = "|".join(_more(fraction, inclusive))
    equal = rf"{whole}\.({behind})"
    alone = [whole] if inclusive and not fraction else []
    return _either(longer, *larger, *alone, equal)


def _more(fraction: str, inclusive: bool) -> Iterator[str]:
    """What stands behind the point of as much or more."""
    for at, digit in enumerate(fraction):
        if digit != "9":
            yield f"{fraction[:at]}[{int(digit) + 1}-9][0-9]*"
    yield fraction + (
        "[0-9]+" if inclusive and not fraction else "[0-9]*" if inclusive else "[0-9]*[1-9][0-9]*"
    )


def _at_most(value: Decimal, inclusive: bool) -> str:
    whole, fraction = _digits(value)
    shorter = [rf"(0|[1-9][0-9]{{0,{len(whole) - 2}}})(\.[0-9]+)?"] if len(whole) > 1 else []
    smaller = (f"{head}{rest}" + r"(\.[0-9]+)?" for head, rest in _beside(whole, up=False))
    equal = [rf"{whole}\.{part}" for part in _less(fraction, inclusive)]
    alone = [whole] if inclusive or fraction else []
    return _either(*shorter, *smaller, *alone, *equal)


def _less(fraction: str, inclusive: bool) -> Iterator[str]:
    """What stands behind the point of as much or less."""
    for at, digit in enumerate(fraction):
        if at:
            yield fraction[:at]
        if digit != "0":
            yield f"{fraction[:at]}[0-{int(digit) - 1}][0-9]*"
    if inclusive:
        yield fraction + ("0*" if fraction else "0+")


def _beside(whole: str, *, up: bool) -> Iterator[tuple[str, str]]:
    """Numbers of as many digits that are larger, or smaller: how they begin, and the rest."""
    for at, digit in enumerate(whole):
        first = at == 0 and len(whole) > 1
        low, high = (int(digit) + 1, 9) if up else (int(first), int(digit) - 1)
        if low <= high:
            yield f"{whole[:at]}[{low}-{high}]", f"[0-9]{{{len(whole) - at - 1}}}"


def _either(*parts: str) -> str:
    return "|".join(f"({part})" for part in parts)
