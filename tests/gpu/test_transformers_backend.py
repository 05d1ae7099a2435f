"""Models of transformers over our pages: exact where they are served, refused with a sentence where not."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import pytest
import torch

from gpu.models.self_test import check_paged
from gpu.models.transformers_backend import TransformersModel
from protocols.errors import StartError
from tests.gpu.driver import Driver
from tests.gpu.tiny import Tiny, make, prompts

_GPT2 = {"n_embd": 64, "n_layer": 2, "n_head": 4}
_MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
_DEEPSEEK = {
    "num_key_value_heads": 4,
    "q_lora_rank": 32,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 16,
    "qk_nope_head_dim": 16,
    "v_head_dim": 24,
    "n_routed_experts": 4,
    "n_group": 1,
    "topk_group": 1,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "first_k_dense_replace": 1,
}
_LONGROPE = {
    "rope_parameters": {"rope_type": "longrope", "short_factor": [1.1] * 8, "long_factor": [3.0] * 8},
    "original_max_position_embeddings": 64,
}

SERVED: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2: learned positions": ("GPT2LMHeadModel", _GPT2),
    "gpt-bigcode: multi-query": ("GPTBigCodeForCausalLM", _GPT2),
    "gpt-neox: parallel, partial rotary": ("GPTNeoXForCausalLM", {}),
    "opt: positions with an offset": ("OPTForCausalLM", {"ffn_dim": 96, "word_embed_proj_dim": 64}),
    "phi": ("PhiForCausalLM", {}),
    "phi3": ("Phi3ForCausalLM", {"sliding_window": 6}),
    "stablelm": ("StableLmForCausalLM", {}),
    "starcoder2": ("Starcoder2ForCausalLM", {}),
    "gemma2: softcap, alternate windows": (
        "Gemma2ForCausalLM",
        {"head_dim": 16, "sliding_window": 6, "num_hidden_layers": 3, "attn_logit_softcapping": 2.0},
    ),
    "gemma3: two rotary bases": (
        "Gemma3ForCausalLM",
        {"head_dim": 16, "sliding_window": 6, "num_hidden_layers": 6},
    ),
    "olmo2: norm after": ("Olmo2ForCausalLM", {}),
    "cohere2: layers without positions": (
        "Cohere2ForCausalLM",
        {"sliding_window": 6, "num_hidden_layers": 4},
    ),
    "granite: multipliers": ("GraniteForCausalLM", {"attention_multiplier": 0.1, "logits_scaling": 2.0}),
    "qwen2-moe": ("Qwen2MoeForCausalLM", {**_MOE, "shared_expert_intermediate_size": 24}),
    "mixtral": ("MixtralForCausalLM", {"num_local_experts": 4}),
    "gpt-oss: sinks": (
        "GptOssForCausalLM",
        {"head_dim": 16, "num_local_experts": 4, "sliding_window": 6},
    ),
    "deepseek-v3: keys wider than values": ("DeepseekV3ForCausalLM", _DEEPSEEK),
}

REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "mamba": ("MambaForCausalLM", {}, "recurrent state"),
    "jamba": ("JambaForCausalLM", {}, "recurrent state"),
    "llama4": (
        "Llama4ForCausalLM",
        {"attention_chunk_size": 8, "intermediate_size_mlp": 96, "num_local_experts": 2},
        "chunked_attention",
    ),
    "falcon": ("FalconForCausalLM", {}, "attention interface"),
    "bert": ("BertLMHeadModel", {}, "differ from those of transformers"),
    "mpt": ("MptForCausalLM", {"d_model": 64, "n_heads": 4, "n_layers": 2, "max_seq_len": 128}, "in pages"),
    "phi3 past the length where its frequencies change": (
        "Phi3ForCausalLM",
        _LONGROPE,
        "--max-model-len 64",
    ),
}

PROMPTS = prompts(1, 5, 33, 12)


@pytest.fixture(scope="module", autouse=True)
def quiet() -> None:
    """transformers' own progress bars and warnings say nothing here."""
    import transformers

    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()


@pytest.mark.parametrize("variant", SERVED)
def test_tokens_and_logprobs_are_those_of_transformers(variant: str, tmp_path: pathlib.Path) -> None:
    architecture, settings = SERVED[variant]
    tiny = make(tmp_path, architecture, **settings)
    executor = tiny.executor()
    assert isinstance(executor._model, TransformersModel)
    for options in ({"budget": 256}, {"budget": 7, "depth": 2}):
        outputs = Driver(executor, **options).generate(PROMPTS, 10)
        for prompt, output in zip(PROMPTS, outputs, strict=True):
            tiny.check(prompt, output)


@pytest.mark.parametrize("variant", REFUSED)
def test_what_cannot_be_exact_is_refused(variant: str, tmp_path: pathlib.Path) -> None:
    architecture, settings, reason = REFUSED[variant]
    tiny = make(tmp_path, architecture, **settings)
    with pytest.raises(StartError, match=reason):
        tiny.executor()


def test_long_rope_is_served_up_to_where_it_changes(tmp_path: pathlib.Path) -> None:
    tiny = make(tmp_path, "Phi3ForCausalLM", **_LONGROPE)
    outputs = Driver(tiny.executor(max_model_len=64)).generate(PROMPTS, 10)
    for prompt, output in zip(PROMPTS, outputs, strict=True):
        tiny.check(prompt, output)


def test_a_window_that_attention_is_not_told_of_is_refused(tmp_path: pathlib.Path) -> None:
    """Phi has no window: one in its config would be in nobody's mask. Longer than the self-test."""
    tiny = make(tmp_path, "PhiForCausalLM", sliding_window=50)
    with pytest.raises(StartError, match="window of 50 tokens"):
        tiny.executor()


def test_the_self_test_notices_rows_that_meet_outside_attention(tmp_path: pathlib.Path) -> None:
    tiny = make(tmp_path, "PhiForCausalLM")
    model = tiny.executor()._model
    assert isinstance(model, TransformersModel)
    block = model.model.model.layers[0]
    block.mlp.register_forward_hook(lambda module, args, out: out + out.mean(1, keepdim=True))
    with torch.inference_mode(), pytest.raises(StartError, match="relative error"):
        check_paged(model, model._own_logits, torch.float32, torch.device("cpu"), tiny.config().model)


def test_a_wasted_row_past_the_last_learned_position_harms_nobody(tmp_path: pathlib.Path) -> None:
    tiny = make(tmp_path, "GPT2LMHeadModel", **_GPT2, max_position_embeddings=32)
    prompt, other = prompts(30, 20)
    assert tiny.reference.transformer.wpe.num_embeddings == 32
    past, output = Driver(tiny.executor(), depth=2).generate([prompt, other], 4)
    assert len(past.tokens) == 4
    tiny.check(other, output)


def test_code_that_comes_with_a_model_never_runs(tmp_path: pathlib.Path) -> None:
    tiny = make(tmp_path, "PhiForCausalLM")
    path = tmp_path / "config.json"
    settings = json.loads(path.read_text())
    settings["auto_map"] = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}
    path.write_text(json.dumps(settings | {"model_type": "evil"}))
    mark = tmp_path / "ran"
    (tmp_path / "evil.py").write_text(f"import pathlib\npathlib.Path({str(mark)!r}).touch()\n")
    with pytest.raises(StartError, match="refuses the config"):
        tiny.executor()
    assert not mark.exists()


def _settings(tiny: Tiny) -> dict[str, Any]:
    settings: dict[str, Any] = json.loads((tiny.path / "config.json").read_text())
    return settings


def test_weights_that_do_not_fit_the_config_are_refused(tmp_path: pathlib.Path) -> None:
    tiny = make(tmp_path, "PhiForCausalLM")
    settings = _settings(tiny)
    (tmp_path / "config.json").write_text(json.dumps(settings | {"num_hidden_layers": 3}))
    with pytest.raises(StartError, match="missing_keys"):
        tiny.executor()
    (tmp_path / "config.json").write_text(json.dumps(settings | {"intermediate_size": 64}))
    with pytest.raises(StartError, match=r"mismatch|do not fit"):
        tiny.executor()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize(
    "variant", ["gemma2: softcap, alternate windows", "mixtral", "gpt2: learned positions"]
)
def test_rounding_is_no_reason_to_refuse(variant: str, dtype: str, tmp_path: pathlib.Path) -> None:
    architecture, settings = SERVED[variant]
    executor = make(tmp_path, architecture, **settings).executor(dtype=dtype)
    outputs = Driver(executor).generate(PROMPTS, 5)
    assert [len(output.tokens) for output in outputs] == [5] * len(PROMPTS)
