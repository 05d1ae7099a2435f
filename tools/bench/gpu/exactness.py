"""Are the tokens right? Tiny random models against transformers, token by token, on every path there is."""

from __future__ import annotations

import copy
import dataclasses
import pathlib
import statistics
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from gpu.loading import load_executor
from protocols.config import Config, KernelChoice, KvCacheDtype, Quantization, read_model_card
from protocols.errors import StartError
from tools.bench.gpu.cases import MODELS
from tools.bench.gpu.driver import Driver, Request, requests

_MOE = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 64, "norm_topk_prob": True}
_MODELS: dict[str, tuple[str, dict[str, Any]]] = {
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
MARGIN = 1e-3
"""By how much in float32 the logit of a token of ours may lie below the highest: what rounding does."""
SLACK, SLACK_OF_8_BITS = 0.05, 0.5
"""The same in bfloat16 and in 8 bits, on average, beyond twice what transformers in bfloat16 lies below."""
SHARE, SHARE_OF_8_BITS = 0.1, 0.4
"""By how much smaller the share of the same tokens may be than that of transformers in bfloat16."""

BACKENDS = ("auto", "triton", "flash", "flash,triton", "flashinfer", "torch")
EIGHT_BIT_MODELS = ("qwen3", "qwen3-moe")
EIGHT_BITS: dict[str, dict[str, Any]] = {
    "int8": {"quantization": Quantization.INT8},
    "fp8": {"quantization": Quantization.FP8},
    "fp8 KV": {"kv_cache_dtype": KvCacheDtype.FP8},
}


@dataclasses.dataclass(frozen=True)
class Path:
    """One way to serve a model. bits: what is kept in 8 bits, "" for nothing."""

    model: str
    dtype: str
    backend: str = "auto"
    graphs: str = "auto"
    bits: str = ""

    @property
    def title(self) -> str:
        """In words."""
        return " ".join(filter(None, (self.dtype, self.backend, f"graphs {self.graphs}", self.bits)))


@dataclasses.dataclass(frozen=True)
class Gaps:
    """How far the logits of tokens lie below the highest. same: share of those that are the highest."""

    worst: float
    mean: float
    same: float

    @classmethod
    def of(cls, gaps: Sequence[float]) -> Gaps:
        """Of all tokens."""
        return cls(max(gaps), statistics.fmean(gaps), sum(gap == 0 for gap in gaps) / len(gaps))


@dataclasses.dataclass(frozen=True)
class Verdict:
    """ours: of the tokens that we chose, as transformers in float32 sees them. theirs: of those that
    transformers in bfloat16 would have chosen in their places. refused: why the path does not exist here."""

    path: Path
    ours: Gaps = Gaps(0.0, 0.0, 1.0)
    theirs: Gaps = Gaps(0.0, 0.0, 1.0)
    refused: str = ""

    @property
    def right(self) -> bool:
        """As near as rounding lets it be; or not there, which is no error."""
        path, ours, theirs = self.path, self.ours, self.theirs
        if self.refused:
            return True
        if path.dtype == "float32" and not path.bits:
            return ours.worst <= MARGIN
        slack, share = (SLACK_OF_8_BITS, SHARE_OF_8_BITS) if path.bits else (SLACK, SHARE)
        return ours.mean <= 2 * theirs.mean + slack and ours.same >= theirs.same - share

    def figures(self) -> dict[str, Any]:
        """For a report."""
        if self.refused:
            return {"right": True, "refused": self.refused}
        return {
            "right": self.right,
            **dataclasses.asdict(self.ours),
            "theirs": dataclasses.asdict(self.theirs),
        }


def paths(model: str, device: torch.device) -> Iterator[Path]:
    """As it is served; one model on every path there is."""
    dtypes, many = ("float32", "bfloat16"), device.type == "cuda" and model == MODELS[0]
    if device.type != "cuda":
        yield Path(model, "float32")
    elif not many:
        yield from (Path(model, dtype) for dtype in dtypes)
    else:
        # As it is served first; then what a failure might lie at.
        yield from (
            Path(model, dtype, backend, graphs)
            for graphs in ("auto", "off")
            for dtype in dtypes
            for backend in BACKENDS
        )
    if model in EIGHT_BIT_MODELS:
        yield from (Path(model, "bfloat16", bits=bits) for bits in EIGHT_BITS)


def reference(directory: pathlib.Path, name: str) -> Any:
    """A random model of transformers, saved to `directory`, with norms and biases that cannot go unseen."""
    import transformers

    architecture, settings = _MODELS[name]
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
    directory: pathlib.Path, model: Any, path: Path, device: torch.device, *, smallest: bool
) -> Verdict:
    """One path: chunks and decodes in one step, contexts of many pages."""
    config = Config(
        model=read_model_card(directory),
        device=str(device),
        dtype=path.dtype,
        attention_backend=path.backend,
        cuda_graphs=path.graphs,
        kernels=KernelChoice.TORCH,
        max_running=4,
        chunk_size=64,
        pages=256,
        **EIGHT_BITS.get(path.bits, {}),
    )
    asked = requests(3, (5, 20), (4, 6), 1024) if smallest else requests(8, (3, 300), (20, 40), 1024)
    try:
        executor = load_executor(config, lambda _: None)
    except StartError as error:
        return Verdict(path, refused=str(error))
    found = Driver(executor, 48, depth=2).run(asked).tokens
    whole = [_logits(model, each, tokens) for each, tokens in zip(asked, found, strict=True)]
    ours = [gap for logits, tokens in zip(whole, found, strict=True) for gap in _below(logits, tokens)]
    if path.dtype == "float32":
        return Verdict(path, Gaps.of(ours))
    rounded = copy.deepcopy(model).to(torch.bfloat16)
    theirs = [
        gap
        for logits, each, tokens in zip(whole, asked, found, strict=True)
        for gap in _below(logits, _logits(rounded, each, tokens).argmax(1).tolist())
    ]
    return Verdict(path, Gaps.of(ours), Gaps.of(theirs))


@torch.inference_mode()
def _logits(model: Any, request: Request, tokens: list[int]) -> torch.Tensor:
    """What each token was chosen from, given all tokens before it: [len(tokens), vocab]."""
    ids = torch.tensor([[*request.prompt, *tokens[:-1]]])
    logits: torch.Tensor = model(input_ids=ids, use_cache=False).logits[0, len(request.prompt) - 1 :].float()
    return logits


def _below(logits: torch.Tensor, tokens: list[int]) -> list[float]:
    """How far each token's logit lies below the highest."""
    chosen = logits.gather(1, torch.tensor(tokens)[:, None])[:, 0]
    gaps: list[float] = (logits.max(1).values - chosen).tolist()
    return gaps
