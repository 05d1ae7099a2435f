"""A step of sequences with random keys and values, and what attention over it must give."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from gpu.attention import Backend, Batch, Spec
from gpu.kv_pool import KvPool, KvShape

PAGE = 4
HEADS, SHAPE = 6, KvShape(kv_heads=2, key_dim=8, value_dim=8)


class Case:
    """Sequences of random keys and values, of which the last `query_lens` positions are this step's."""

    def __init__(
        self,
        contexts: list[int],
        query_lens: list[int],
        shape: KvShape = SHAPE,
        dtype: torch.dtype = torch.float32,
        page: int = PAGE,
        heads: int = HEADS,
        stored: torch.dtype | None = None,
    ) -> None:
        self.contexts, self.query_lens, self.shape, self.heads = contexts, query_lens, shape, heads
        generator = torch.Generator().manual_seed(len(contexts) * 1000 + sum(contexts))

        def random(rows: int, heads: int, dim: int) -> Tensor:
            return torch.randn(rows, heads, dim, generator=generator).to(dtype)

        self.keys = [random(size, shape.kv_heads, shape.key_dim) for size in contexts]
        self.values = [random(size, shape.kv_heads, shape.value_dim) for size in contexts]
        self.queries = [random(size, heads, shape.key_dim) for size in query_lens]
        self.sinks = torch.randn(heads, generator=generator).to(dtype)
        self.page = page
        self._lay_out(dtype, stored)

    def _lay_out(self, dtype: torch.dtype, stored: torch.dtype | None) -> None:
        pages = [math.ceil(size / self.page) for size in self.contexts]
        cpu = torch.device("cpu")
        self.pool = KvPool([self.shape], sum(pages) + 3, self.page, dtype, cpu, stored)
        numbers = np.random.default_rng(0).permutation(self.pool.pages).astype(np.int32)
        self.tables = np.zeros((len(pages), max(pages)), np.int32)
        layer = self.pool.layers[0]
        layer.keys[:-1], layer.values[:-1] = torch.nan, torch.nan
        for row, count in enumerate(pages):
            self.tables[row, :count], numbers = numbers[:count], numbers[count:]

    def run_on(
        self, chosen: Backend, spec: Spec, decodes: int, sinks: bool = False, *, written: bool = False
    ) -> Tensor:
        """The backend's answer to the step, after a step for everything before it, or, `written`, with that
        in the pages already."""
        before = [context - length for context, length in zip(self.contexts, self.query_lens, strict=True)]
        if written:
            self._write(before)
        elif any(before):
            some = [row for row, size in enumerate(before) if size]
            self._step(chosen, spec, some, [0] * len(before), before, 0)
        every = list(range(len(before)))
        return self._step(chosen, spec, every, before, self.contexts, decodes, self.sinks if sinks else None)

    def share(self, row: int, other: int, positions: int) -> None:
        """Sequence `row` begins with the pages of `other`, as far as whole ones go."""
        pages = positions // self.page
        self.tables[row, :pages] = self.tables[other, :pages]
        for rows in (self.keys, self.values):
            rows[row][: pages * self.page] = rows[other][: pages * self.page]

    def alone(self, chosen: Backend, spec: Spec, row: int) -> Tensor:
        """The backend's answer to one sequence's part of the step, once `run_on` has run."""
        before = [context - length for context, length in zip(self.contexts, self.query_lens, strict=True)]
        return self._step(chosen, spec, [row], before, self.contexts, 0)

    def _step(
        self,
        chosen: Backend,
        spec: Spec,
        rows: list[int],
        starts: list[int],
        ends: list[int],
        decodes: int,
        sinks: Tensor | None = None,
    ) -> Tensor:
        """Positions starts .. ends - 1 of some sequences; queries are random where the case has none."""
        at = [np.arange(starts[row], ends[row]) for row in rows]
        places = [
            self.tables[row, positions // self.page].astype(np.int64) * self.page + positions % self.page
            for row, positions in zip(rows, at, strict=True)
        ]
        self.places = np.concatenate(places)
        batch = Batch(
            query_lens=np.array([len(positions) for positions in at], np.int64),
            contexts=np.array([ends[row] for row in rows], np.int64),
            block_tables=self.tables[rows],
            positions=np.concatenate(at),
            places=self.places,
            decodes=decodes,
        )
        queries = [
            self.queries[row] if ends[row] == self.contexts[row] else torch.zeros_like(self._query(ends[row]))
            for row in rows
        ]
        return chosen.prepare(batch).attend(
            0,
            torch.cat(queries),
            torch.cat([self.keys[row][starts[row] : ends[row]] for row in rows]),
            torch.cat([self.values[row][starts[row] : ends[row]] for row in rows]),
            spec,
            sinks,
        )

    def _write(self, ends: list[int]) -> None:
        """The keys and values of each sequence up to where the step begins."""
        layer = self.pool.layers[0]
        for row, end in enumerate(ends):
            at = np.arange(end)
            places = torch.from_numpy(
                self.tables[row, at // self.page].astype(np.int64) * self.page + at % self.page
            )
            layer.key_rows[places] = self.keys[row][:end].flatten(1)
            layer.value_rows[places] = self.values[row][:end].flatten(1)

    def _query(self, rows: int) -> Tensor:
        return self.queries[0].new_empty(rows, self.heads, self.shape.key_dim)

    def expected(self, spec: Spec, sinks: bool = False) -> Tensor:
        """The answer written out in float64, row by row."""
        out = []
        for query, key, value in zip(self.queries, self.keys, self.values, strict=True):
            start = len(key) - len(query)
            for row, vector in enumerate(query.double()):
                position = start + row
                first = max(0, position - spec.window + 1) if spec.window else 0
                seen = slice(first, position + 1)
                shared = self.heads // self.shape.kv_heads
                k = key[seen].double().repeat_interleave(shared, dim=1)
                v = value[seen].double().repeat_interleave(shared, dim=1)
                scores = torch.einsum("hd,lhd->hl", vector, k) * spec.scale
                if spec.softcap:
                    scores = spec.softcap * torch.tanh(scores / spec.softcap)
                extra = self.sinks.double()[:, None] if sinks else torch.full((self.heads, 1), -torch.inf)
                weights = torch.cat((scores, extra), dim=1).softmax(1)[:, :-1]
                out.append(torch.einsum("hl,lhd->hd", weights, v))
        return torch.stack(out)
