"""Bytes of mail, as counted and as they are."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.company import company
from actors.sizes import SLOT_BYTES, least_ring_bytes, portions, row_bytes
from protocols.config import Config, ModelCard
from protocols.errors import ErrorBody, StartError
from protocols.messages import TokenRow, Tokens
from protocols.plan import Logprobs, PageGrant, Plan, SlotOpen, StepDone
from protocols.request import Finish
from protocols.sampling import MAX_LOGIT_BIAS, MAX_STOP_TOKEN_IDS, MAX_TOP_LOGPROBS, SamplingParams
from protocols.wire import encode

TOKEN = 2**31 - 1
LOGPROBS = Logprobs(-0.1, (TOKEN,) * MAX_TOP_LOGPROBS, (-0.1,) * MAX_TOP_LOGPROBS)
CARD = ModelCard("m", "/m", "LlamaForCausalLM", 128, 256, (1,))

records = st.integers(0, MAX_TOP_LOGPROBS).map(lambda n: Logprobs(-0.1, (TOKEN,) * n, (-0.1,) * n))
rows = st.builds(
    TokenRow,
    st.integers(0, 2**63),
    st.integers(0, 2**28),
    st.lists(st.integers(0, TOKEN), max_size=3).map(tuple),
    logprobs=st.lists(records, max_size=3).map(tuple),
    error=st.none() | st.text(max_size=99).map(lambda text: ErrorBody(500, text, "server_error", "failed")),
)


@given(st.lists(rows, max_size=40), st.integers(1, 3000))
def test_tokens_are_cut_by_their_bytes(every: list[TokenRow], together: int) -> None:
    cut = list(portions(every, together))
    assert [row for portion in cut for row in portion] == every
    for portion in cut:
        assert len(portion) == 1 or len(encode(Tokens(portion))) <= together + 16
    weights = [sum(map(row_bytes, portion)) for portion in cut]
    assert all(this + row_bytes(after[0]) > together for this, after in zip(weights, cut[1:], strict=False))


def test_the_heaviest_slot_is_counted_in_full() -> None:
    sampling = SamplingParams(0.1, 0.1, 2**31, 0.1, 0.1, 0.1, 0.1, 2**63 - 1, TOKEN, TOKEN, True)
    sampling = msgspec.structs.replace(
        sampling, stop_token_ids=(TOKEN,) * (MAX_STOP_TOKEN_IDS + 8), logprobs=20
    )
    opened = SlotOpen(TOKEN, 2**63, sampling, 127, TOKEN, TOKEN, b"")
    plan = Plan(2**63, TOKEN, (TOKEN,), (opened,), (PageGrant(TOKEN, TOKEN, b""),) * 3, (), b"1234", b"1234")
    assert len(encode(plan)) <= SLOT_BYTES
    done = StepDone(2**63, TOKEN, b"1234", b"1234", TOKEN, ((TOKEN, LOGPROBS),), ((TOKEN, "x" * 200),))
    assert len(encode(done)) <= SLOT_BYTES
    assert len(encode(Tokens((TokenRow(2**63, TOKEN, (TOKEN,), Finish.STOP, TOKEN, (LOGPROBS,)),)))) <= (
        SLOT_BYTES
    )


def test_the_heaviest_bias_is_counted_in_full() -> None:
    bias = ((TOKEN, -99.5),) * MAX_LOGIT_BIAS
    assert len(msgspec.msgpack.encode(bias)) <= 16 * MAX_LOGIT_BIAS


def test_rings_that_are_too_small_are_refused_at_the_start() -> None:
    least = least_ring_bytes(Config(CARD))
    assert least % 8 == 0 and least < Config(CARD).ring_bytes
    company(Config(CARD, ring_bytes=least))
    with pytest.raises(StartError, match=f"ring_bytes is {least - 8}, .* at least {least}"):
        company(Config(CARD, ring_bytes=least - 8))
