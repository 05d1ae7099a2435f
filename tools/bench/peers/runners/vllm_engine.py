"""vLLM, compiled, in one process (no engine core of its own), with its prefix cache."""

from __future__ import annotations

import os
from collections.abc import Callable

Generate = Callable[[list[list[int]], int], list[list[int]]]
_KV_BYTES = 2 << 30


def load(model: str, threads: int, context: int) -> tuple[str, Generate]:
    """vLLM's version, and its `generate`."""
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    os.environ["OMP_NUM_THREADS"] = str(threads)
    import vllm

    engine = vllm.LLM(model, dtype="bfloat16", max_model_len=context, kv_cache_memory_bytes=_KV_BYTES)

    def generate(prompts: list[list[int]], output: int) -> list[list[int]]:
        sampling = vllm.SamplingParams(temperature=0, max_tokens=output, ignore_eos=True, detokenize=False)
        inputs = [{"prompt_token_ids": prompt} for prompt in prompts]
        answers = engine.generate(inputs, sampling, use_tqdm=False)
        return [list(answer.outputs[0].token_ids) for answer in answers]

    return vllm.__version__, generate
