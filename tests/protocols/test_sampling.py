"""The limits of the sampling parameters, and the sentences that refuse what is beyond them."""

from __future__ import annotations

import pytest

from protocols.errors import UserError
from protocols.sampling import SamplingParams, validate


@pytest.mark.parametrize(
    ("params", "sentence"),
    [
        (SamplingParams(max_tokens=0), "max_tokens must be between 1 and 2147483648, not 0."),
        (SamplingParams(max_tokens=2**40), "max_tokens must be between 1 and 2147483648, not 1099511627776."),
        (SamplingParams(temperature=-0.5), "temperature must be between 0 and 100, not -0.5."),
        (SamplingParams(temperature=float("nan")), "temperature must be between 0 and 100, not nan."),
    ],
)
def test_limits_are_told_in_full(params: SamplingParams, sentence: str) -> None:
    with pytest.raises(UserError) as refused:
        validate(params, vocab_size=8)
    assert refused.value.body.message == sentence
