"""The CPU's kernels: products that do not depend on the crowd, whole models, building, and doing without."""

from __future__ import annotations

import contextlib
import os
import pathlib
import stat
import threading
from typing import Any

import numpy as np
import pytest
import torch

from gpu.cpu import build, start
from gpu.cpu.fused import FusedDecoder, quantize
from gpu.cpu.library import Kernels
from gpu.executor import Executor
from gpu.models.llama import Decoder
from protocols.compiling import Unavailable
from protocols.config import KernelChoice, Quantization
from protocols.errors import StartError
from tests.gpu import plans
from tests.gpu.driver import GREEDY, Driver
from tests.gpu.tiny import Tiny, make, prompts

SIZES = [(64, 64), (100, 40), (344, 256), (96, 330)]


def compiled(threads: int = 2, *flags: str) -> Kernels:
    """The kernels, or a skipped test where there is no compiler."""
    try:
        return Kernels(build.load(print, flags), threads)
    except Unavailable as reason:
        pytest.skip(str(reason))


@pytest.fixture(scope="module")
def kernels() -> Kernels:
    """With two threads."""
    return compiled()


@pytest.mark.parametrize(("n", "k"), SIZES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_product_is_right_and_the_same_in_any_crowd(
    kernels: Kernels, n: int, k: int, dtype: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(n)
    weight, x = (torch.randn(size, generator=generator).to(dtype) for size in ((n, k), (110, k)))
    bias = torch.randn(n, generator=generator)
    packed = kernels.pack(weight, bias)
    whole = kernels.linear(packed, x)
    assert torch.allclose(whole.double(), x.double() @ weight.double().T + bias, atol=1e-3)
    for rows in (1, 2, 5, 6, 7, 16, 48, 49, 96):
        assert torch.equal(kernels.linear(packed, x[:rows]), whole[:rows])
        assert torch.equal(kernels.linear(packed, x[-rows:]), whole[-rows:])


def test_eight_bits_are_the_rounded_weights(kernels: Kernels) -> None:
    generator = torch.Generator().manual_seed(0)
    weight, x = torch.randn(100, 72, generator=generator), torch.randn(64, 72, generator=generator).bfloat16()
    numbers, scale = quantize(weight)
    assert ((numbers * scale[:, None] - weight).abs() <= 0.5001 * scale[:, None]).all()
    packed = kernels.pack(numbers, scale=scale)
    whole = kernels.linear(packed, x)
    expected = x.double() @ (numbers.double() * scale[:, None].double()).T
    assert torch.allclose(whole.double(), expected, atol=1e-4)
    for rows in (1, 7, 12, 13, 50):
        assert torch.equal(kernels.linear(packed, x[:rows]), whole[:rows])


def test_the_team_s_size_changes_nothing() -> None:
    generator = torch.Generator().manual_seed(3)
    weight, x = (torch.randn(size, generator=generator).bfloat16() for size in ((700, 128), (130, 128)))
    results = [team.linear(team.pack(weight), x) for team in (compiled(threads) for threads in (1, 2, 3, 5))]
    assert all(torch.equal(result, results[0]) for result in results)


def test_more_threads_than_cores_keep_their_order() -> None:
    """Some of them always lag behind; every product is whole all the same."""
    generator = torch.Generator().manual_seed(4)
    weight, x = (torch.randn(size, generator=generator).bfloat16() for size in ((700, 128), (3, 128)))
    team = compiled(7)
    packed = team.pack(weight)
    first = team.linear(packed, x)
    assert all(torch.equal(team.linear(packed, x), first) for _ in range(500))


@pytest.mark.parametrize("flag", ["-mno-avx512bf16", "-march=x86-64"])
def test_machines_with_fewer_instructions(flag: str) -> None:
    if os.uname().machine != "x86_64":
        pytest.skip("flags of x86")
    lesser = compiled(1, "-O1", flag)
    assert all(start.agrees(lesser, dtype) for dtype in (torch.float32, torch.bfloat16))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """A model whose sizes fill no panel."""
    path = tmp_path_factory.mktemp("tiny")
    return make(path, "Qwen3ForCausalLM", hidden_size=72, intermediate_size=100, head_dim=20)


def fused(tiny: Tiny, **options: object) -> Executor:
    """An executor on the kernels."""
    compiled()
    executor = tiny.executor(kernels=KernelChoice.AUTO, **options)
    assert isinstance(executor._model, FusedDecoder)
    return executor


def test_sizes_that_fill_no_panel(tiny: Tiny) -> None:
    for prompt, output in zip(PROMPTS, Driver(fused(tiny), budget=20).generate(PROMPTS, 10), strict=True):
        tiny.check(prompt, output)


PROMPTS = prompts(1, 33, 70, 12)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("threads", [1, 2])
def test_logits_are_the_same_bits_alone_in_a_crowd_and_prefilled_again(
    tiny: Tiny, dtype: str, threads: int
) -> None:
    """What recovery rests on: after a death, prompt and committed tokens are prefilled, in other chunks."""
    executor = fused(tiny, dtype=dtype, threads=threads)
    crowd = Driver(executor, budget=64).generate(PROMPTS, 12)
    for prompt, together in zip(PROMPTS, crowd, strict=True):
        alone = Driver(executor, budget=9).generate([prompt], 12)[0]
        again = Driver(executor, budget=31).generate([[*prompt, *together.tokens[:7]]], 5)[0]
        assert alone.tokens == together.tokens and alone.logprobs == together.logprobs
        assert again.tokens == together.tokens[7:] and again.logprobs == together.logprobs[7:]


def test_rounds_end_where_a_row_has_no_likeliest_token(tiny: Tiny) -> None:
    """The round that fails is run again by the sampler, which says why."""
    executor = fused(tiny)
    expected = plans.Driver(executor).generate(plans.Sequence(0, PROMPTS[3]), 8)
    assert isinstance(executor._model, FusedDecoder)
    with torch.inference_mode():
        executor._model._embedding[expected[4]] = torch.nan
    driver = plans.Driver(executor)
    pair = [driver.open(plans.Sequence(slot, PROMPTS[3])) for slot in (0, 1)]
    driver.step([(sequence, 0, len(sequence.prompt)) for sequence in pair])
    plan = driver.plan([], pair, rounds=7)
    done = driver.take(plan, executor.launch(plan), pair)
    good = expected.index(expected[4]) + 1
    assert [sequence.output[:good] for sequence in pair] == [expected[:good]] * 2
    assert [sequence.output[good] for sequence in pair] == [-1, -1]
    assert [slot for slot, _ in done.failed] == [0, 1] and "not numbers" in done.failed[0][1].message


def test_eight_bit_weights_stay_close(tiny: Tiny) -> None:
    outputs = Driver(fused(tiny, quantization=Quantization.INT8, dtype="auto")).generate(PROMPTS, 6)
    for prompt, output in zip(PROMPTS, outputs, strict=True):
        rows = tiny.logits([*prompt, *output.tokens[:-1]])[len(prompt) - 1 :].log_softmax(-1)
        chosen = np.array([row[token] for token, row in zip(output.tokens, rows, strict=True)])
        assert (rows.max(-1).values.numpy() - chosen).max() < 1.0


@pytest.mark.parametrize("way", ["dtype", "mixture", "architecture"])
def test_eight_bits_need_the_kernels(tiny: Tiny, tmp_path: pathlib.Path, way: str) -> None:
    options: dict[str, Any] = {"quantization": Quantization.INT8, "dtype": "auto"}
    if way == "mixture":
        sizes = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
        tiny = make(tmp_path, "Qwen3MoeForCausalLM", **sizes)
    elif way == "dtype":
        options["dtype"] = "float32"
    else:
        tiny = make(tmp_path, "GPTNeoXForCausalLM")
    with pytest.raises(StartError, match="needs the CPU kernels"):
        tiny.executor(**options)


def test_kernels_that_give_other_numbers_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled()
    monkeypatch.setattr(start, "agrees", lambda *_: False)
    told: list[str] = []
    assert start.start(1, told.append) is None
    assert "give other numbers" in told[-1]


def compiled_with(told: list[str]) -> None:
    """Ask for a quick build."""
    with contextlib.suppress(Unavailable):
        build.load(told.append, ("-O0",))


class TestBuild:
    """Compiling once, and doing without."""

    @pytest.fixture(autouse=True)
    def cache(self, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
        """An empty cache."""
        monkeypatch.setenv("TROUPE_CACHE", str(tmp_path / "cache"))
        return tmp_path / "cache"

    def test_compiles_once_for_all_who_ask_at_the_same_time(self, cache: pathlib.Path) -> None:
        told: list[str] = []
        askers = [threading.Thread(target=compiled_with, args=(told,)) for _ in range(3)]
        for asker in askers:
            asker.start()
        for asker in askers:
            asker.join()
        if not told:
            pytest.skip("there is no compiler")
        assert ["compiling" in line for line in told] == [True]
        assert len(list(cache.glob("*.so"))) == 1

    def test_without_a_compiler_torch_computes(
        self, tiny: Tiny, monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
    ) -> None:
        monkeypatch.setattr("protocols.compiling.shutil.which", lambda _: None)
        monkeypatch.delenv("CXX", raising=False)
        told: list[str] = []
        assert start.start(1, told.append) is None
        assert told == ["no CPU kernels, torch computes instead: there is no C++ compiler (g++ or clang++)"]
        assert isinstance(tiny.executor()._model, Decoder)

    def test_a_compiler_that_fails_is_quoted(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
    ) -> None:
        broken = tmp_path / "broken"
        broken.write_text("#!/bin/sh\necho no such instruction >&2\nexit 1\n")
        broken.chmod(broken.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setenv("CXX", str(broken))
        with pytest.raises(Unavailable, match="failed: no such instruction"):
            build.load(print)


def test_greedy_equals_torch(tiny: Tiny) -> None:
    ours = Driver(fused(tiny)).generate(PROMPTS, 8, GREEDY)
    theirs = Driver(tiny.executor(kernels=KernelChoice.TORCH)).generate(PROMPTS, 8, GREEDY)
    assert [output.tokens for output in ours] == [output.tokens for output in theirs]
