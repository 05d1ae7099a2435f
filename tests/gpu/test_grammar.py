"""The grammar's mask: what may follow and where it may end, whoever computed the tokens before, and when."""

from __future__ import annotations

import dataclasses
import json
import re

import msgspec
import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

from gpu.cpu.start import start
from gpu.draw_cpu import CpuDraw, DrawKind
from gpu.grammar import Follower, Grammars
from gpu.masked import Masked
from gpu.sampler import Sampler, SampleResult
from protocols.config import read_model_card
from protocols.plan import SlotOpen
from protocols.sampling import SamplingParams
from tools.actorctl.serve import DEMO_MODEL

CARD = read_model_card(DEMO_MODEL)
TOKENIZER = Tokenizer.from_file(str(DEMO_MODEL / "tokenizer.json"))
END, OTHER_END = CARD.eos
PROMPT = 3
LIMITS = np.dtype([("temperature", "f8"), ("top_k", "i8"), ("top_p", "f8"), ("min_p", "f8"), ("kind", "u1")])


def regex(pattern: str) -> str:
    return json.dumps({"grammars": [{"lark_grammar": f"start: /{pattern}/"}]})


def sampling(pattern: str, **fields: object) -> SamplingParams:
    return changed(SamplingParams(seed=1, stop_token_ids=CARD.eos, grammar=regex(pattern)), fields)


def changed(params: SamplingParams, fields: dict[str, object]) -> SamplingParams:
    return SamplingParams(
        **{name: fields.get(name, getattr(params, name)) for name in params.__struct_fields__}
    )


@dataclasses.dataclass
class Bench:
    """A sampler, fed with the same random logits for the same position whatever the batch."""

    sampler: Sampler

    def open(self, slot: int, params: SamplingParams, output: list[int]) -> None:
        history = np.array([7] * PROMPT + output, "<i4").tobytes()
        self.sampler.open(SlotOpen(slot, slot, params, 0, PROMPT, 0, history))

    def follower(self, slot: int) -> Follower:
        assert self.sampler._grammars is not None
        found = self.sampler._grammars._follower(slot)
        assert isinstance(found, Follower)
        return found

    def step(self, slots: list[int], lengths: list[int], *, favour: int = -1) -> SampleResult:
        """favour: a token that the model wants above all."""
        rows = []
        for length in lengths:
            generator = torch.Generator().manual_seed(length)
            rows.append(torch.randn(CARD.vocab_size, generator=generator) * 2)
            if favour >= 0:
                rows[-1][favour] = 50.0
        positions = np.array(lengths, np.int64) + PROMPT
        return self.sampler.sample(torch.stack(rows), np.array(slots, np.int32), positions)

    def run(self, slot: int, params: SamplingParams, *, favour: int = -1, most: int = 200) -> list[int]:
        """A sequence to its end."""
        output: list[int] = []
        self.open(slot, params, output)
        while len(output) < most and (not output or output[-1] not in CARD.eos):
            output.append(int(self.step([slot], [len(output)], favour=favour).host_tokens()[0]))
        return output


@pytest.fixture
def bench() -> Bench:
    device = torch.device("cpu")
    return Bench(Sampler(4, CARD.vocab_size, device, Grammars(CARD, device, 4)))


def text(output: list[int]) -> str:
    return str(TOKENIZER.decode(output[:-1], skip_special_tokens=False))


@pytest.mark.parametrize(
    "shape",
    [
        {},
        {"temperature": 0.0},
        {"top_k": 50},
        {"top_k": 3, "top_p": 0.5},
        {"top_p": 0.3},
        {"min_p": 0.2},
        {"repetition_penalty": 1.3, "presence_penalty": 1.0, "logit_bias": ((60, 20.0),)},
        {"logprobs": 3},
    ],
)
def test_the_text_is_what_the_grammar_says(bench: Bench, shape: dict[str, object]) -> None:
    pattern = "[a-f]{2,6}-[0-9]{3}(, x)?"
    output = bench.run(0, sampling(pattern, **shape))
    assert output[-1] in CARD.eos and re.fullmatch(pattern, text(output)), text(output)


def test_the_end_is_allowed_exactly_where_the_grammar_ends(bench: Bench) -> None:
    """A model that wants nothing but to end cannot before the grammar does, and with any of its ends."""
    for favoured in (END, OTHER_END):
        output = bench.run(0, sampling("[ab]{4}c*"), favour=favoured)
        assert output[-1] == favoured and re.fullmatch("[ab]{4}", text(output))
    assert text(bench.run(1, sampling("abc"))) == "abc", "one that must end does, whatever it wants"


def test_below_min_tokens_the_end_waits_while_there_is_anything_else(bench: Bench) -> None:
    output = bench.run(0, sampling("a*", min_tokens=9), favour=END)
    assert len(output) == 10 and output[-1] == END
    assert text(bench.run(1, sampling("ab", min_tokens=9), favour=END)) == "ab"


def test_a_token_of_the_grammar_that_stops_is_an_end(bench: Bench) -> None:
    comma = TOKENIZER.token_to_id(",")
    params = sampling("[ab]{3}(,[ab]{3})*", stop_token_ids=(comma, *CARD.eos))
    output: list[int] = []
    bench.open(0, params, output)
    while not output or output[-1] not in params.stop_token_ids:
        output.append(int(bench.step([0], [len(output)], favour=comma).host_tokens()[0]))
    assert output[-1] == comma and re.fullmatch("[ab]{3}", text(output))


def test_a_sequence_goes_on_as_if_it_had_never_been_away(bench: Bench) -> None:
    params = sampling("[a-z]{3,9}( [a-z]{3,9}){4}")
    whole = bench.run(0, params)
    for cut in range(len(whole)):
        bench.open(1, params, whole[:cut])
        lengths = range(cut, len(whole))
        rest = [int(bench.step([1], [length]).host_tokens()[0]) for length in lengths]
        assert whole[:cut] + rest == whole


def test_neighbours_and_waste_change_nothing(bench: Bench) -> None:
    """Others beside it, with grammars and without; rows after the end, as overlap has them; and a step that
    is read only when the next one has been launched."""
    params, other = sampling("[0-9]{12}"), sampling("[a-z]{2}")
    alone = bench.run(0, params)
    bench.open(0, params, [])
    bench.open(1, other, [])
    bench.open(2, SamplingParams(seed=5), [])
    results = [bench.step([2, 0, 1], [length] * 3) for length in range(len(alone))]
    assert [int(result.host_tokens()[1]) for result in results] == alone
    assert not any(row == 0 for result in results for row, _ in result.failed), "waste is no failure"


def test_what_grew_too_complex_fails_alone(bench: Bench) -> None:
    bench.open(0, sampling("[a-z]{4}"), [END - 1, END - 1])
    bench.open(1, sampling("[a-z]{4}"), [])
    result = bench.step([0, 1], [2, 0])
    tokens = result.host_tokens()
    assert tokens[0] == -1 and tokens[1] >= 0
    ((slot, error),) = result.failed
    assert slot == 0 and error.message.startswith("The text could not be held to its grammar: Parser Error")
    assert (error.status, error.code) == (400, "grammar_not_kept")


@pytest.mark.parametrize("grammar", ["nonsense", "{", regex("a(b"), '{"grammars": []}'])
def test_a_grammar_that_cannot_be_read_fails_alone(bench: Bench, grammar: str) -> None:
    """And its slot serves the next sequence."""
    bench.open(0, msgspec.structs.replace(sampling("x"), grammar=grammar), [])
    bench.open(1, sampling("[a-z]{4}"), [])
    bench.open(2, SamplingParams(seed=5), [])
    alone = bench.step([2], [0]).host_tokens()[0]
    result = bench.step([2, 0, 1], [0, 0, 0])
    tokens = result.host_tokens()
    assert tokens[0] == alone and tokens[1] == -1 and tokens[2] >= 0
    ((slot, error),) = result.failed
    assert slot == 0 and error.message.startswith("The text could not be held to its grammar: "), error
    assert "\n" not in error.message
    assert bench.step([0, 1], [1, 1]).host_tokens()[1] >= 0, "a step more, as overlap has it"
    bench.sampler.close(0)
    assert text(bench.run(0, sampling("ab"))) == "ab"


def test_a_panic_of_the_library_fails_alone(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    class Panic(BaseException):
        """As Rust's panics come."""

    def panics(*_: object, **__: object) -> None:
        raise Panic("index out of bounds")

    with monkeypatch.context() as patched:
        patched.setattr("gpu.matchers.LLMatcher", panics)
        bench.open(0, sampling("never seen"), [])
        result = bench.step([0], [0])
    ((_, error),) = result.failed
    assert error.message == "The text could not be held to its grammar: index out of bounds."
    bench.sampler.close(0)
    assert text(bench.run(0, sampling("ab"))) == "ab"


def test_a_used_matcher_is_lent_again_and_changes_nothing(bench: Bench) -> None:
    params = sampling("[a-z]{3,9}( [a-z]{3,9}){4}")
    first = bench.run(0, params)
    bench.sampler.close(0)
    assert bench.run(1, params) == first
    follower = bench.follower(1)
    assert follower.lent.served == len(first) - 1
    # Where it has used up its limits, a fresh one takes its place.
    bench.open(1, params, first[:4])
    follower = bench.follower(1)
    broken = follower.matcher
    assert follower.lent.served and not broken.consume_token(END - 1)
    rest = [int(bench.step([1], [length]).host_tokens()[0]) for length in range(4, len(first))]
    assert first[:4] + rest == first and follower.matcher is not broken


def test_rows_under_a_mask_are_drawn_as_if_the_rest_were_impossible() -> None:
    """By kernels, for all kinds of draws, of few tokens and of many, in vocabularies that fill no word."""
    kernels = start(1, print)
    if kernels is None:
        pytest.skip("no CPU kernels here")
    rng = np.random.default_rng(0)
    limits = np.zeros(30, LIMITS)
    for i, kind in enumerate([*DrawKind][:5] * 6):
        restricted = [kind == each for each in (DrawKind.RANK, DrawKind.MASS, DrawKind.RATIO)]
        rank, mass, ratio = restricted
        limits[i] = (0.3 + i % 3, 7 if rank else 0, 0.8 if mass or rank else 1, 0.1 * ratio, kind)
    for vocab in (31, 512, 4099):
        limits["top_k"][limits["kind"] != DrawKind.RANK] = vocab
        logits = torch.from_numpy(rng.normal(0, 3, (30, vocab)).astype(np.float32))
        bits = rng.random((30, vocab)) < rng.choice([0.01, 0.5, 1.0], 30)[:, None]
        bits[np.arange(30), rng.integers(0, vocab, 30)] = True
        masks = np.packbits(np.pad(bits, ((0, 0), (0, -vocab % 32))), axis=1, bitorder="little")
        uniform = rng.random(30)
        uniform[:3] = 0.0, 1 - 2.0**-53, 1 - 2.0**-53
        possible = logits.masked_fill(torch.from_numpy(~bits), -torch.inf)
        expected, best = CpuDraw(vocab).choose(possible, limits, uniform)
        masked = Masked(np.arange(30), masks.view(np.uint32), kernels)
        found, highest = CpuDraw(vocab).choose(logits.clone(), limits, uniform, masked)
        assert found.tolist() == expected.tolist() and np.array_equal(highest, best)
        some = np.array([3, 17, 22])
        masked = Masked(some, masks.view(np.uint32)[some], kernels)
        found, highest = CpuDraw(vocab).choose(logits.clone(), limits, uniform, masked)
        free, _ = CpuDraw(vocab).choose(logits, limits, uniform)
        free[some] = expected[some]
        assert found.tolist() == free.tolist(), "the other rows are free"
        broken = logits.clone()
        broken[4], broken[9, np.flatnonzero(bits[9])[0]], bits[14] = -torch.inf, torch.nan, False
        masks = np.packbits(np.pad(bits, ((0, 0), (0, -vocab % 32))), axis=1, bitorder="little")
        masked = Masked(np.arange(30), masks.view(np.uint32), kernels)
        _, highest = CpuDraw(vocab).choose(broken, limits, uniform, masked)
        assert np.flatnonzero(~np.isfinite(highest)).tolist() == [4, 9, 14]


def test_compiled_grammars_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gpu.matchers.CACHED_GRAMMARS", 3)
    device = torch.device("cpu")
    grammars = Grammars(CARD, device, 4)
    bench = Bench(Sampler(4, CARD.vocab_size, device, grammars))
    for index in range(8):
        assert text(bench.run(index % 4, sampling(f"a{{{index + 1}}}"))) == "a" * (index + 1)
        assert len(grammars._matchers._compiled) <= 3
