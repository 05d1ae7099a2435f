"""Are the tokens right? Tiny random models against transformers, token by token, on every path there is."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Iterator
from typing import Any

import torch

from gpu.executor import Executor
from protocols.config import Config, KernelChoice, KvCacheDtype, Quantization, read_model_card
from protocols.errors import StartError
from tools.bench.gpu.driver import Driver, Request, requests

_MOE = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 64, "norm_topk_prob": True}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen3": ("Qwen3ForCausalLM", {"head_dim": 64}),
    "qwen2": ("Qwen2ForCausalLM", {"hidden_size": 320, "num_attention_heads": 4}),
    "mistral-window": ("MistralForCausalLM", {"sliding_window": 24, "head_dim": 128}),
    "qwen3-moe": ("Qwen3MoeForCausalLM", {"head_dim": 64, **_MOE}),
}
_SIZES = {
    "vocab_size": 1024,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 3,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
}
MARGIN = {"float32": 1e-3, "bfloat16": 0.25}
"""By how much the logit of our token may lie below the reference's highest: what rounding does, no more."""


BACKENDS = ("auto", "triton", "flash", "flash,triton", "flashinfer", "torch")
EIGHT_BITS: dict[str, dict[str, Any]] = {
    "int8": {"quantization": Quantization.INT8},
    "fp8": {"quantization": Quantization.FP8},
    "fp8 KV": {"kv_cache_dtype": KvCacheDtype.FP8},
}


@dataclasses.dataclass(frozen=True)
class Verdict:
    """worst: how far the logit of a token of ours lay below the highest. same: share of the tokens that were
    the highest. refused: why this path does not exist here. bits: what is kept in 8 bits, "" for nothing."""

    model: str
    dtype: str
    backend: str
    graphs: str
    worst: float = 0.0
    same: float = 0.0
    refused: str = ""
    bits: str = ""

    @property
    def title(self) -> str:
        """The path in words."""
        return " ".join(
            filter(None, (self.model, self.dtype, self.backend, f"graphs {self.graphs}", self.bits))
        )

    @property
    def right(self) -> bool:
        """Within the margin; or not there, which is no error."""
        return bool(self.refused) or self.worst <= (MARGIN_OF_8_BITS if self.bits else MARGIN[self.dtype])


MARGIN_OF_8_BITS = 3.0
"""The same for weights, keys or values of 8 bits, of random models: another function, but not far from it."""


def verdicts(folder: pathlib.Path, device: torch.device, *, smallest: bool) -> Iterator[Verdict]:
    """Every model as it is served; the first on every path there is."""
    on_gpu = device.type == "cuda"
    for number, name in enumerate(list(MODELS)[:: 3 if smallest else 1]):
        directory = folder / name
        model = reference(directory, name)
        many = on_gpu and number == 0
        for dtype in ("float32", "bfloat16") if on_gpu else ("float32",):
            for backend in BACKENDS if many else ("auto",):
                for graphs in ("off", "auto") if many else ("auto",):
                    yield check(directory, model, name, device, dtype, backend, graphs, smallest=smallest)
        if number == 0:
            for bits in EIGHT_BITS:
                yield check(
                    directory, model, name, device, "bfloat16", "auto", "auto", bits, smallest=smallest
                )


def reference(directory: pathlib.Path, name: str) -> Any:
    """A random model of transformers, saved to `directory`, with norms and biases that cannot go unseen."""
    import transformers

    architecture, settings = MODELS[name]
    model_class = getattr(transformers, architecture)
    torch.manual_seed(0)
    config = model_class.config_class(**(_SIZES | settings), architectures=[architecture])
    config._attn_implementation = "eager"
    model = model_class(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.normal_(1.0, 0.2)
            else:
                parameter.normal_(0.0, 2.0 / parameter.shape[-1] ** 0.5)
    model.to(torch.bfloat16).to(torch.float32)  # so that both dtypes mean the same numbers
    model.save_pretrained(directory)
    return model


def check(
    directory: pathlib.Path,
    model: Any,
    name: str,
    device: torch.device,
    dtype: str,
    backend: str,
    graphs: str,
    bits: str = "",
    *,
    smallest: bool,
) -> Verdict:
    """One path: chunks and decodes in one step, contexts of many pages."""
    verdict = Verdict(name, dtype, backend, graphs, bits=bits)
    config = Config(
        model=read_model_card(directory),
        device=str(device),
        dtype=dtype,
        attention_backend=backend,
        cuda_graphs=graphs,
        kernels=KernelChoice.TORCH,
        max_running=4,
        chunk_size=64,
        pages=256,
        **EIGHT_BITS.get(bits, {}),
    )
    asked = requests(3, (5, 20), (4, 6), 1024) if smallest else requests(8, (3, 300), (20, 40), 1024)
    try:
        executor = Executor.load(config, lambda _: None)
    except StartError as error:
        return dataclasses.replace(verdict, refused=str(error))
    outcome = Driver(executor, 48, depth=2).run(asked)
    gaps = [
        gap for each, tokens in zip(asked, outcome.tokens, strict=True) for gap in _gaps(model, each, tokens)
    ]
    same = sum(gap == 0 for gap in gaps) / len(gaps)
    return dataclasses.replace(verdict, worst=max(gaps), same=same)


@torch.inference_mode()
def _gaps(model: Any, request: Request, tokens: list[int]) -> list[float]:
    """How far each token's logit lies below the highest, given all tokens before it."""
    ids = torch.tensor([[*request.prompt, *tokens[:-1]]])
    logits = model(input_ids=ids, use_cache=False).logits[0, len(request.prompt) - 1 :].float()
    chosen = logits.gather(1, torch.tensor(tokens)[:, None])[:, 0]
    gaps: list[float] = (logits.max(1).values - chosen).tolist()
    return gaps
