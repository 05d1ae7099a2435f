"""The executor: Plan -> StepDone, synchronous. No mail, no event loop, no clock but to report durations.

`launch` applies a plan's deltas, runs the forward and samples; on a GPU it returns while the device still
works, so that the next plan can be prepared. `finish` waits and reads the tokens back. The last
sampled token of every slot stays on the device, where the next plan's decodes find it. An executor that
speculates guesses from the tokens, so its `launch` waits for those of the step before.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

import msgspec
import numpy as np
import torch
from torch import Tensor

from gpu.attention.choice import choose
from gpu.attention.paged import PagedAttention
from gpu.block_tables import BlockTables, SlotKeeper, Step
from gpu.cpu.library import Kernels
from gpu.cuda.graphs import DecodeGraphs, Recorder
from gpu.cuda.staging import to_device
from gpu.cuda.tuning import Tuner
from gpu.expert_counts import ExpertCounts
from gpu.flight import Flight
from gpu.grammar import Grammars
from gpu.kv_pool import KvPool
from gpu.lora.peft import ModelShelf
from gpu.lora.table import AdapterTable
from gpu.models.base import Inputs, Model, Tap
from gpu.models.cuda import TritonDecoder
from gpu.models.loading import load_model
from gpu.models.registry import NATIVE
from gpu.occupation import settle
from gpu.prompt_outputs import PromptOutputs, Round, Told
from gpu.recording import TorchRecording
from gpu.sampler import Likeliest, Sampler, SampleResult
from gpu.speculation import Speculator
from gpu.versions import Versions
from protocols.config import Config
from protocols.errors import ErrorBody
from protocols.orders import StartProfile
from protocols.plan import Chunk, PageGrant, Plan, SlotOpen, StepDone
from protocols.sampling import SamplingParams
from protocols.standing import Memory
from protocols.weights import ORIGINAL, Weights

_WARMING = (128, 64, 32, 2)
"""Tokens of prefills for which there are different kernels."""


class Executor:
    """One model with its pages and slots on one device. asynchronous: whether steps run after `launch`."""

    def __init__(
        self,
        config: Config,
        model: Model,
        pool: KvPool,
        kernels: Kernels | None = None,
        weights: Weights = ORIGINAL,
        tell: Callable[[str], None] = lambda _: None,
    ) -> None:
        card, self.slots, self.vocab_size = config.model, config.max_running, config.model.vocab_size
        self.pages, self.page_size = pool.pages, pool.page_size
        self.asynchronous = pool.device.type == "cuda"
        self._model, self._device, self._context = model, pool.device, card.context
        self._config, self._pool, self._kernels = config, pool, kernels
        self.versions = Versions(card.own, pool.device, model, weights)
        self._plain = card.architecture in NATIVE
        self.attention = choose(pool, kernels, config.attention_backend, plain=self._plain, tell=tell)
        # Under overlap a sequence that has reached its end may run one wasted row past it.
        self._table = BlockTables(self.slots, -(-(card.context + 1) // pool.page_size), pool.page_size)
        self._grammars = Grammars(card, pool.device, self.slots, kernels)
        self._sampler = Sampler(self.slots, card.vocab_size, pool.device, self._grammars)
        self._prompt_outputs = PromptOutputs(pool.device)
        self.adapters = AdapterTable(
            ModelShelf(model.lora, config.max_lora_rank, self.adapt), config.max_loras, config.max_running
        )
        self._experts = ExpertCounts(pool.device)
        self._last = torch.zeros(self.slots, dtype=torch.int64, device=pool.device)
        self._speculator = Speculator.of(config)
        self._keepers: list[SlotKeeper] = [self._table, self._sampler, self._prompt_outputs, self.adapters]
        if self._speculator is not None:
            self._keepers.append(self._speculator)
        self._unverified: Flight | None = None
        self._epoch: int | None = None
        self._idle_since = 0.0
        self._missing: set[Memory] = set()
        self._graphs: DecodeGraphs | None = None
        self._record: Callable[[], None] = lambda: None
        self._adapt: Callable[[], None] = lambda: None
        self._tuner: Tuner | None = None

    def use_tuner(self, tuner: Tuner) -> None:
        """Find out how few rows are multiplied best, and again whenever the weights are others."""
        self._tuner = tuner
        self._tune()

    def _tune(self) -> None:
        if self._tuner is not None and isinstance(self._model, TritonDecoder):
            self._tuner.tune(self._model.linears())

    @torch.inference_mode()
    def use_graphs(self, sizes: Sequence[int], recorder: Recorder, progress: Callable[[str], None]) -> None:
        """Record the decodes of these batch sizes, where attention and model can be recorded."""
        backend = self.attention
        if not sizes:
            progress("no CUDA graphs: as asked for")
            return
        if not (isinstance(backend, PagedAttention) and backend.decode.capturable and self._plain):
            progress("no CUDA graphs: this model, or its attention, works on the host")
            return
        graphs = DecodeGraphs(backend, self._last, self._table.width, self.vocab_size, sizes)
        self._graphs, self._record = graphs, lambda: graphs.record(self._model, recorder, progress)
        self._adapt = lambda: graphs.adapt(self._model, recorder, progress)
        self._record()

    @torch.inference_mode()
    def adapt(self) -> None:
        """Slots of adapters lie elsewhere than before. No flight may be under way."""
        self._adapt()

    @torch.inference_mode()
    def refresh(self) -> None:
        """The model's tensors, or the pages, lie elsewhere than before: whatever was recorded is recorded
        again. No flight may be under way."""
        self._experts.follow(self._model)
        self._tune()
        if not self._experts.on:
            self._record()

    def release_graphs(self) -> None:
        """Give up what was recorded, until `refresh`: steps are launched operation by operation."""
        if self._graphs is not None:
            self._graphs.release()

    def warm_up(self) -> None:
        """Run a small prefill and a decode, so that the first request does not wait for kernels to be
        compiled and loaded; on a GPU larger ones too, for which there are others. In epochs of their own: the
        next plan forgets them. The vocabulary of grammars is read meanwhile."""
        self._grammars.preload()
        for tokens in _WARMING if self.asynchronous else _WARMING[-1:]:
            self.run_alone(min(tokens, self.page_size * self.pages, max(1, self._context - 1)))

    def run_alone(self, tokens: int) -> None:
        """A prefill of so many tokens, and a decode where it has room, of no request."""
        epoch = -1 - tokens
        opening = SlotOpen(0, 0, SamplingParams(temperature=0.0, seed=0), 0, tokens, 0)
        pages = np.arange(-(-tokens // self.page_size), dtype="<i4")
        chunk, grant = Chunk(0, 0, bytes(4 * tokens), True), PageGrant(0, 0, pages.tobytes())
        self.finish(self.launch(Plan(epoch, 0, (), (opening,), (grant,), (chunk,))))
        if len(pages) * self.page_size > tokens:
            self.finish(self.launch(Plan(epoch, 1, decodes=bytes(4))))

    @torch.inference_mode()
    def launch(self, plan: Plan) -> Flight:
        """Apply the deltas, run the forward, sample. Does not wait for a GPU."""
        launched = time.perf_counter()
        self._verify()
        self._apply(plan)
        flight, *further = self._rounds(plan, launched)
        if further:
            flight = dataclasses.replace(flight, further=tuple(further))
        if self._speculator is not None:
            self._unverified = flight
        return flight

    @torch.inference_mode()
    def finish(self, flight: Flight) -> StepDone:
        """Wait for the flight and read back what it sampled. Flights finish in launch order."""
        if self.asynchronous:
            torch.cuda.set_device(self._device)  # of this thread, which would wake up another device
        done = flight.land()
        since, self._idle_since = max(flight.launched, self._idle_since), time.perf_counter()
        return msgspec.structs.replace(done, elapsed_us=int((self._idle_since - since) * 1e6))

    def release(self, tags: tuple[Memory, ...]) -> dict[str, int]:
        """Give memory back, between two flights: bytes by tag. Until it is restored there is no flight."""
        sizes = dict.fromkeys(tags, 0)
        self._missing.update(tags)
        self.release_graphs()  # they read pages and weights where these lie now
        if Memory.KV_CACHE in tags:
            sizes[Memory.KV_CACHE] = self._pool.size
            self._pool.release()
        if Memory.WEIGHTS in tags:
            sizes[Memory.WEIGHTS] = self.versions.release()
        settle()
        return {tag.value: size for tag, size in sizes.items()}

    @torch.inference_mode()
    def restore(self, tags: tuple[Memory, ...]) -> dict[str, int]:
        """Take memory again: bytes by tag. Weights are read anew, those that served; pages are empty.
        StartError where that cannot be done."""
        sizes = dict.fromkeys(tags, 0)
        if Memory.KV_CACHE in tags:
            self._pool.restore()
            sizes[Memory.KV_CACHE] = self._pool.size
        if Memory.WEIGHTS in tags:
            config, weights = self._config, self.versions.live.weights
            model, _ = load_model(config, self._device, lambda _text: None, self._kernels, weights)
            model.take_adapters(self._model)
            self._model = model
            sizes[Memory.WEIGHTS] = self.versions.restore(model)
        self._missing.difference_update(tags)
        if not self._missing:
            self.refresh()
        return {tag.value: size for tag, size in sizes.items()}

    def record_experts(self, on: bool) -> None:
        """Count the rows of each expert from now on, or no more; idempotent. VerbError where there are no
        experts."""
        if on and not self._experts.on:
            self._experts.start(self._model)
            self.release_graphs()
        elif self._experts.on and not on:
            self._experts.stop(self._model)
            if not self._missing:
                self.refresh()

    def take_experts(self) -> dict[int, tuple[int, ...]]:
        """Rows of each expert by layer, counted since the last time."""
        return self._experts.take()

    def record(self, wish: StartProfile) -> TorchRecording:
        """What this thread launches from now on. StartError where nothing of what is wished for is here."""
        return TorchRecording(wish, self._device)

    def commit(self, serial: int) -> bool:
        """The weights of `serial`, which have been made ready, serve from the next plan on; whether they
        do. No flight may be under way, and what the pages hold is of no more use."""
        model = self.versions.commit(serial)
        if model is not None:
            self._model = model
            self.refresh()
        return self.versions.serial == serial

    def _rounds(self, plan: Plan, launched: float) -> Iterator[Flight]:
        """The plan's rounds, one at least."""
        layout = self._lay_out(plan)
        if layout is None:
            yield Flight(plan.epoch, plan.step, None, None, launched)
            return
        refused = self._refused(layout)
        found = () if refused else self._decode(layout, plan.rounds)
        for likeliest in found:
            yield Flight(plan.epoch, plan.step, layout, Likeliest(likeliest), launched)
        if not len(found):
            result, told = self._forward(layout, self._prompt_outputs.plan(plan), refused)
            yield Flight(plan.epoch, plan.step, layout, result, launched, told, refused=refused)
        again = msgspec.structs.replace(plan, closes=(), opens=(), grants=(), rounds=1)
        for _ in range(plan.rounds - max(1, len(found))):
            yield self.launch(again)

    def _decode(self, layout: Step, rounds: int) -> Sequence[Tensor] | Tensor:
        """Tokens [n] of the first of the layout's rounds, as far as these are nothing but a model that
        decodes by itself and its most likely tokens."""
        greedy, slots = self._model.greedy, layout.decodes
        if greedy is None or len(slots) < len(layout.slots) or not self._only_likeliest(layout, rounds):
            return ()
        places = self.adapters.rows(slots, layout.batch.query_lens)
        found = greedy(self._inputs(layout, layout.batch.positions, places), rounds)
        if len(found):
            self._table.advance(slots, len(found) - 1)
            self._last[slots] = found[-1]
        return found

    def _only_likeliest(self, layout: Step, rounds: int) -> bool:
        """Whether so many rounds of the layout's slots are nothing but the model and its likeliest tokens."""
        end = int(layout.batch.contexts.max()) + rounds - 1
        return self._sampler.takes_likeliest(layout.sampled) and end <= self._context

    def _lay_out(self, plan: Plan) -> Step | None:
        """The plan's forward, None when it has no rows."""
        if self._speculator is None:
            return self._table.step(plan) if plan.chunks or plan.decodes else None
        runs, decodes = self._speculator.rows(plan, self._table.lengths, self._table.granted)
        return self._table.step(plan, runs, decodes) if plan.chunks or runs or len(decodes) else None

    def _verify(self) -> None:
        """Take in what the last launched step sampled: how far its runs got, and the texts to guess from."""
        flight, self._unverified = self._unverified, None
        if self._speculator is None or flight is None or flight.layout is None or flight.result is None:
            return
        layout, tokens = flight.layout, flight.result.host_tokens()
        confirmed = layout.confirmed(tokens)
        start = layout.first_run
        for run, count in zip(layout.runs, confirmed, strict=True):
            self._table.advance(run.slot, count)
            sampled = tokens[start : start + count].tolist()
            self._speculator.add(run.slot, sampled, len(run.tokens) - 1)
            self._last[run.slot] = max(sampled[-1], 0)
            start += len(run.tokens)
        single = [*range(layout.first_run), *range(start, len(tokens))]
        for slot, token in zip(layout.sampled[single].tolist(), tokens[single].tolist(), strict=True):
            self._speculator.add(slot, [token])

    def _apply(self, plan: Plan) -> None:
        if plan.epoch != self._epoch:
            self._epoch = plan.epoch
            for keeper in self._keepers:
                keeper.reset()
        for keeper in self._keepers:
            for slot in plan.closes:
                keeper.close(slot)
            for opening in plan.opens:
                keeper.open(opening)
        for grant in plan.grants:
            self._table.grant(grant)

    def _forward(
        self, step: Step, read: Round | None, refused: Mapping[int, ErrorBody]
    ) -> tuple[SampleResult | None, Told | None]:
        # A wasted row past the end must not ask a model for a position that it does not have.
        clipped = np.minimum(step.batch.positions, self._context - 1)
        places = self.adapters.rows(step.slots, step.batch.query_lens)
        if self._graphs is not None and len(step.known_tokens) == 0:
            replayed = self._graphs.run(step.decodes, step.batch, clipped, places)
            if replayed is not None:
                return self._sample(step, replayed, refused), None
        wanted = step.rows if read is None else np.concatenate([step.rows, np.array(read.rows, np.int64)])
        every = read is None and len(wanted) == len(step.batch.positions)
        rows = None if every else self._to_device(wanted)
        tap = read.tap(self._device) if read is not None else None
        logits = self._model.forward(self._inputs(step, clipped, places, rows, tap))
        told = None
        if read is not None:
            count = len(step.rows)
            told, logits = self._prompt_outputs.read(read, logits[count:], tap), logits[:count]
        return self._sample(step, logits, refused), told

    def _inputs(
        self,
        step: Step,
        positions: np.ndarray,
        places: np.ndarray | None,
        rows: Tensor | None = None,
        tap: Tap | None = None,
    ) -> Inputs:
        """The step as a model sees it. places: see `AdapterTable.rows`."""
        attention = self.attention.prepare(step.batch)
        adapters = None if places is None else self._to_device(places)
        return Inputs(self._tokens(step), self._to_device(positions), attention, rows, tap, adapters)

    def _refused(self, step: Step) -> Mapping[int, ErrorBody]:
        """Why slots of the step cannot be computed, by slot."""
        if not self.adapters.refuses:
            return {}
        found = ((slot, self.adapters.refusal(slot)) for slot in step.sampled.tolist())
        return {slot: error for slot, error in found if error is not None}

    def _sample(self, step: Step, logits: Tensor, refused: Mapping[int, ErrorBody]) -> SampleResult | None:
        if len(step.sampled) == 0:
            return None
        if refused:
            rows = np.flatnonzero(np.isin(step.sampled, list(refused)))
            logits.index_fill_(0, self._to_device(rows), torch.nan)
        result = self._sampler.sample(logits, step.sampled, step.next_positions)
        # A failed row has token -1; whatever follows it is waste, but must be a token. Runs: see `_verify`.
        self._last.index_copy_(0, self._to_device(step.sampled.astype(np.int64)), result.tokens.clamp(min=0))
        return result

    def _tokens(self, step: Step) -> Tensor:
        """int64 [T]: those known here, then the decodes' from the device."""
        known = step.known_tokens
        if len(known) == 0:
            return self._last[self._to_device(step.decodes)]
        assert known.min() >= 0 and known.max() < self.vocab_size, "a token id outside the vocabulary"
        tokens = self._to_device(known)
        if len(step.decodes) == 0:
            return tokens
        return torch.cat((tokens, self._last[self._to_device(step.decodes)]))

    def _to_device(self, values: np.ndarray) -> Tensor:
        return to_device(values, self._device)
