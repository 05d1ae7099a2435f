"""Weights, keys and values of 8 bits on a GPU's path: what they stand for, and who can have them."""

from __future__ import annotations

import pathlib
from collections.abc import Callable
from typing import Any

import pytest
import torch

from gpu.attention.torch_sdpa import TorchAttention
from gpu.cuda.tuning import Choices, Tuner
from gpu.kv_pool import EIGHT_BITS, in_eight_bits
from gpu.layers import Linear
from gpu.models.base import Model
from gpu.quantized import Quantized
from gpu.tiling import LIMITS, TILINGS, tiling_of
from protocols.config import KernelChoice, KvCacheDtype, Quantization
from protocols.errors import StartError
from tests.gpu import interpreted
from tests.gpu.driver import GREEDY, Driver
from tests.gpu.tiny import Tiny, make, prompts

if interpreted.DEVICE:
    from gpu.cuda.product_kernels import product

pytestmark = pytest.mark.timeout(300)

PROMPTS = prompts(9, 3)
KINDS = [Quantization.INT8, Quantization.FP8]


@pytest.mark.parametrize("kind", KINDS)
def test_what_8_bits_stand_for(kind: Quantization) -> None:
    weight = torch.randn(7, 50, generator=torch.Generator().manual_seed(1))
    weight[3] = 0
    found = Quantized.of(weight, kind)
    step = weight.abs().amax(1, keepdim=True) / 127 if kind is Quantization.INT8 else weight.abs() / 8
    assert ((found.rows() - weight).abs() <= step.clamp(min=1e-3)).all()
    assert found.numbers.element_size() == 1 and found.scale.shape == (7,)
    x, bias = torch.randn(3, 50), torch.randn(7)
    torch.testing.assert_close(found.linear(x, bias), x @ found.rows().T + bias, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("kind", KINDS)
@torch.inference_mode()
def test_the_kernel_for_few_rows(kind: Quantization, dtype: torch.dtype) -> None:
    weight, bias = torch.randn(70, 300).to(dtype), torch.randn(70).to(dtype)
    found = Quantized.of(weight, kind)
    for rows in (1, 19):
        x = torch.randn(rows, 300).to(dtype)
        got = product(x, found.numbers, found.scale, bias)
        exact = x.double() @ (found.numbers.double() * found.scale.double()[:, None]).T + bias.double()
        close = 1e-3 if dtype == torch.float32 else 0.1
        torch.testing.assert_close(got.double(), exact, atol=close, rtol=1e-2)
        bare = found.numbers, found.scale, None
        assert torch.equal(product(x, *bare)[:1], product(x[:1], *bare))


@torch.inference_mode()
def test_what_is_quickest_multiplies_few_rows(tmp_path: pathlib.Path) -> None:
    """Whatever that is gives the same; each shape is tried once, also by who comes after a death; and many
    rows go through the library."""

    def linear(n: int) -> Linear:
        weight = torch.randn(n, 608, generator=torch.Generator().manual_seed(n)).half()
        return Linear(608, n, bias=False, dtype=torch.half, device=weight.device, weight=weight)

    trials: list[float] = []

    def clock(work: Callable[[], None]) -> float:
        work()
        trials.append(-len(trials) if len(trials) < 5 else len(trials))
        return trials[-1]

    maps, kept = [linear(70), linear(16), linear(70)], tmp_path / "cache" / "products.json"
    early = Choices(kept)
    for _ in range(2):
        Tuner(clock, Choices(kept)).tune(maps)
        assert len(trials) == 2 * len(LIMITS) * (1 + len(TILINGS))
    assert maps[0].tilings == maps[2].tilings == (TILINGS[-1], None) and maps[1].tilings == (None, None)
    for shape in ("70x608 torch.float16 False", "new"):
        assert early.settle(shape, (TILINGS[0], None)) == Choices(kept).get(shape)
    assert early.get("70x608 torch.float16 False") == maps[0].tilings
    for tiling in TILINGS:
        maps[2].tilings = (tiling, tiling)
        for rows in (1, 5, 16, 17):
            x = torch.randn(rows, 608).half()
            expected = x.float() @ maps[2].rows().float().T
            torch.testing.assert_close(maps[2](x).float(), expected, atol=0.1, rtol=1e-2)
    assert tiling_of(maps[2].tilings, LIMITS[-1] + 1) is tiling_of((), 1) is None


def test_a_head_of_a_token_has_its_own_scale() -> None:
    x = torch.randn(3, 2, 16) * torch.tensor([1e-4, 1.0, 300.0])[:, None, None]
    x[1, 1] = 0
    numbers, scales = in_eight_bits(x)
    assert numbers.dtype is EIGHT_BITS and scales.shape == (3, 2)
    error = (numbers.float() * scales[:, :, None] - x).abs()
    assert (error <= x.abs().amax(2, keepdim=True) / 16).all()
    assert torch.equal(in_eight_bits(x[:1])[0].view(torch.uint8), numbers[:1].view(torch.uint8))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return make(tmp_path_factory.mktemp("qwen3"), "Qwen3ForCausalLM", head_dim=16, num_hidden_layers=1)


MIXTURE: dict[str, Any] = {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "norm_topk_prob": True,
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("family", "settings"), [("Qwen3ForCausalLM", {}), ("Qwen3MoeForCausalLM", MIXTURE)])
def test_a_model_of_8_bits_is_the_model_of_what_they_stand_for(
    kind: Quantization, family: str, settings: dict[str, Any], tmp_path: pathlib.Path
) -> None:
    """A router keeps its precision."""
    options: dict[str, Any] = {"kernels": KernelChoice.TORCH, "quantization": kind}
    reference = make(tmp_path, family, head_dim=16, num_hidden_layers=1, **settings)
    executor = reference.executor(**options)
    model = executor.versions.live.model
    names = dict(model.parts())
    whole = {name for name, part in names.items() if part.ndim == 2 and part.element_size() > 1}
    assert names["head.weight"].element_size() == 1
    assert whole == {"embedding"} | ({"model.layers.0.mlp.gate.weight"} if settings else set())
    with torch.no_grad():
        for name, parameter in reference.reference.named_parameters():
            parameter.copy_(_read(model, name, parameter.shape))
    for prompt, output in zip(PROMPTS, Driver(executor).generate(PROMPTS, 5, GREEDY), strict=True):
        reference.check(prompt, output, tolerance=1e-3)


def _read(model: Model, name: str, shape: torch.Size) -> torch.Tensor:
    """A parameter of transformers, which keeps all experts of a layer in one."""
    if ".experts." not in name:
        return model.read(name)
    base, part = name.rsplit(".", 1)
    names = ("gate_proj", "up_proj") if part == "gate_up_proj" else (part,)
    experts = range(MIXTURE["num_experts"])
    every = [torch.cat([model.read(f"{base}.{each}.{one}.weight") for one in names]) for each in experts]
    return torch.stack(every).view(shape)


@pytest.mark.parametrize("backend", ["auto", "triton"])
def test_tokens_do_not_depend_on_chunks_or_recoveries(
    tiny: Tiny, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Keys and values of 8 bits are read as they are kept from the first time on."""
    monkeypatch.setattr("gpu.attention.triton_paged._PROGRAMS", 2)
    options: dict[str, Any] = {"kernels": KernelChoice.TORCH, "kv_cache_dtype": KvCacheDtype.FP8}
    options |= {"attention_backend": backend} if backend == "triton" else {}
    executor = tiny.executor(**options)
    assert isinstance(executor.attention, TorchAttention) == (backend == "auto")
    assert executor._pool.size / executor._pool.layers[0].keys.numel() == 2 + 8 / 16
    outputs = Driver(executor, budget=64).generate(PROMPTS, 4)
    driver = Driver(executor, budget=4, depth=2)
    driver.epoch = 5
    running = [driver.submit(prompt, 4) for prompt in PROMPTS]
    for _ in range(4):
        driver.turn()
    driver.restart()
    while driver.turn():
        pass
    assert [each.output.tokens for each in running] == [output.tokens for output in outputs]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"kv_cache_dtype": KvCacheDtype.FP8}, "--kv-cache-dtype fp8 is for GPUs"),
        ({"quantization": Quantization.FP8}, "--quantization needs a model"),
    ],
)
def test_what_a_cpu_with_our_kernels_refuses(tiny: Tiny, options: dict[str, Any], sentence: str) -> None:
    if tiny.executor()._kernels is None:
        pytest.skip("there are no CPU kernels on this machine")
    with pytest.raises(StartError, match=sentence):
        tiny.executor(**options)


def test_old_gpus_refuse(monkeypatch: pytest.MonkeyPatch) -> None:
    from gpu.kv_pool import check_eight_bits

    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 0))
    with pytest.raises(StartError, match="--quantization fp8 needs a GPU"):
        check_eight_bits(torch.device("cuda"), "--quantization fp8")
