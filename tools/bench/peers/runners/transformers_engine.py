"""transformers: `generate` on one batch, and its continuous batching with KV pages and prefix sharing."""

from __future__ import annotations

from collections.abc import Callable

import torch
import transformers

Generate = Callable[[list[list[int]], int], list[list[int]]]
_PAGE = 32
_SEQUENCES = 16


def _model(model: str, threads: int) -> transformers.PreTrainedModel:
    """The model in bfloat16, for greedy answers that no token ends."""
    torch.set_num_threads(threads)
    transformers.logging.set_verbosity_error()
    loaded = transformers.AutoModelForCausalLM.from_pretrained(
        model, dtype=torch.bfloat16, attn_implementation="sdpa"
    )
    loaded.generation_config = transformers.GenerationConfig(do_sample=False, pad_token_id=0)
    return loaded.eval()


def load(model: str, threads: int, context: int) -> tuple[str, Generate]:
    """transformers' version, and its `generate`; all prompts of a batch have one length."""
    loaded = _model(model, threads)

    @torch.inference_mode()
    def generate(prompts: list[list[int]], output: int) -> list[list[int]]:
        inputs = torch.tensor(prompts)
        mask = torch.ones_like(inputs)
        answers = loaded.generate(
            inputs, attention_mask=mask, max_new_tokens=output, min_new_tokens=output, eos_token_id=None
        )
        ids: list[list[int]] = answers[:, inputs.shape[1] :].tolist()
        return ids

    return transformers.__version__, generate


def load_batching(model: str, threads: int, context: int) -> tuple[str, Generate]:
    """transformers' version, and its `generate_batch` with one manager for all batches."""
    loaded = _model(model, threads)
    greedy = transformers.GenerationConfig(do_sample=False, pad_token_id=0, eos_token_id=-1)
    batching = transformers.ContinuousBatchingConfig(
        page_size=_PAGE, num_blocks=_SEQUENCES * context // _PAGE, max_batch_tokens=context
    )

    def generate(prompts: list[list[int]], output: int) -> list[list[int]]:
        answers = loaded.generate_batch(
            prompts,
            generation_config=greedy,
            continuous_batching_config=batching,
            max_new_tokens=output,
            persistent_manager=True,
        )
        return [answer.generated_tokens for answer in answers.values()]

    return transformers.__version__, generate
