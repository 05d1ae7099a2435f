"""llama.cpp: one batch of sequences, each with its own stream of the KV cache; a common prefix is
prefilled once and copied."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Callable
from typing import Any

import gguf_file
import llama_cpp
import numpy as np

Generate = Callable[[list[list[int]], int], list[list[int]]]
Row = tuple[int, int, int, bool]
"""A token, its position, its sequence, and whether its logits are wanted."""
_SEQUENCES = 16
_BATCH = 2048


def load(model: str, threads: int, context: int) -> tuple[str, Generate]:
    """llama-cpp-python's version, and greedy generation for up to 16 prompts."""
    engine = _Engine(gguf_file.convert(pathlib.Path(model)), threads, context)
    return llama_cpp.__version__, engine.generate


def _common(prompts: list[list[int]]) -> int:
    """How many tokens all prompts begin with; the last one of each, whose logits are wanted, never counts."""
    columns = enumerate(zip(*prompts, strict=False))
    return next((index for index, column in columns if len(set(column)) > 1), min(map(len, prompts)) - 1)


class _Engine:
    def __init__(self, path: pathlib.Path, threads: int, context: int) -> None:
        llama_cpp.llama_backend_init()
        self._model = llama_cpp.llama_model_load_from_file(
            os.fsencode(path), llama_cpp.llama_model_default_params()
        )
        params = llama_cpp.llama_context_default_params()
        params.n_ctx, params.n_seq_max, params.kv_unified = _SEQUENCES * context, _SEQUENCES, False
        params.n_batch, params.n_threads, params.n_threads_batch = _BATCH, threads, threads
        self._context = llama_cpp.llama_init_from_model(self._model, params)
        if not self._context:
            raise RuntimeError("llama.cpp made no context")
        self._memory = llama_cpp.llama_get_memory(self._context)
        self._batch = llama_cpp.llama_batch_init(_BATCH, 0, 1)
        self._vocabulary = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self._model))

    def generate(self, prompts: list[list[int]], output: int) -> list[list[int]]:
        llama_cpp.llama_memory_clear(self._memory, False)
        shared = self._prefill_shared(prompts)
        rows = [
            (token, position, sequence, position == len(prompt) - 1)
            for sequence, prompt in enumerate(prompts)
            for position, token in enumerate(prompt)
            if position >= shared
        ]
        answers = [[token] for token in self._decode(rows)]
        for step in range(output - 1):
            last = [
                (answer[-1], len(prompt) + step, sequence, True)
                for sequence, (prompt, answer) in enumerate(zip(prompts, answers, strict=True))
            ]
            for answer, token in zip(answers, self._decode(last), strict=True):
                answer.append(token)
        return answers

    def _prefill_shared(self, prompts: list[list[int]]) -> int:
        """Prefill what all prompts begin with into every sequence; how many tokens that is."""
        if len(prompts) == 1:
            return 0
        shared = _common(prompts)
        if shared:
            self._decode([(token, position, 0, False) for position, token in enumerate(prompts[0][:shared])])
            for sequence in range(1, len(prompts)):
                llama_cpp.llama_memory_seq_cp(self._memory, 0, sequence, -1, -1)
        return shared

    def _decode(self, rows: list[Row]) -> list[int]:
        """Run rows; the best token of each row whose logits are wanted, in order."""
        best: list[int] = []
        for start in range(0, len(rows), _BATCH):
            best += self._decode_batch(rows[start : start + _BATCH])
        return best

    def _decode_batch(self, rows: list[Row]) -> list[int]:
        batch: Any = self._batch
        batch.n_tokens = len(rows)
        for index, (token, position, sequence, wanted) in enumerate(rows):
            batch.token[index], batch.pos[index], batch.logits[index] = token, position, wanted
            batch.n_seq_id[index], batch.seq_id[index][0] = 1, sequence
        if llama_cpp.llama_decode(self._context, batch):
            raise RuntimeError("llama_decode failed")
        count = sum(row[3] for row in rows)
        if not count:
            return []
        logits = np.ctypeslib.as_array(
            llama_cpp.llama_get_logits(self._context), shape=(count * self._vocabulary,)
        )
        return [int(token) for token in logits.reshape(count, -1).argmax(1)]
