"""The hash model is a pure function of the request and the position, and ends as the scheduler would."""

from __future__ import annotations

import zlib

import msgspec
import numpy as np

from protocols.oracle import continuation, hash_token, next_token, sequence_key
from protocols.request import Finish
from protocols.sampling import SamplingParams

PROMPT = np.arange(7, dtype="<i4").tobytes()
SAMPLING = SamplingParams(seed=5, max_tokens=40)


def test_every_argument_changes_the_token() -> None:
    base = (1, 2, 3, 4)
    tokens = {hash_token(*base, 2**31)}
    for index in range(4):
        changed = list(base)
        changed[index] += 1
        tokens.add(hash_token(changed[0], changed[1], changed[2], changed[3], 2**31))
    assert len(tokens) == 5


def test_the_tokens_of_one_seed_spread_over_the_vocabulary() -> None:
    counts = np.bincount([hash_token(9, 9, 0, position, 16) for position in range(4096)], minlength=16)
    assert counts.min() > 180 and counts.max() < 340


def test_parameters_that_shape_the_distribution_are_part_of_the_key() -> None:
    crc = zlib.crc32(PROMPT)
    warm = msgspec.structs.replace(SAMPLING, temperature=0.5)
    longer = msgspec.structs.replace(SAMPLING, max_tokens=41)
    assert sequence_key(crc, warm) != sequence_key(crc, SAMPLING)
    assert sequence_key(crc, longer) == sequence_key(crc, SAMPLING)


def test_a_stop_token_ends_the_output_and_is_part_of_it() -> None:
    whole, finish = continuation(PROMPT, SAMPLING, 0, 1000)
    assert (len(whole), finish) == (40, Finish.LENGTH)
    stop = msgspec.structs.replace(SAMPLING, stop_token_ids=(whole[5],))
    assert continuation(PROMPT, stop, 0, 1000) == (whole[:6], Finish.STOP)


def test_no_stop_token_comes_before_min_tokens() -> None:
    stops = tuple(range(50))
    sampling = msgspec.structs.replace(SAMPLING, stop_token_ids=stops, min_tokens=20)
    tokens, finish = continuation(PROMPT, sampling, 0, 64)
    assert finish is Finish.STOP
    assert all(token not in stops for token in tokens[:20])
    key = sequence_key(zlib.crc32(PROMPT), sampling)
    assert [next_token(key, sampling, 0, 7, i, 64) for i in range(len(tokens))] == list(tokens)
