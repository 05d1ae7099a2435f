"""Any causal language model of transformers, over our pages: slower than a native one, as exact.

transformers lets a registered function stand in for attention. Ours stores keys and values in the
pages and attends through the same backend as the native models; the rest of the model sees one
sequence [1, T] with the position of every row and no mask. That is right only for models whose rows
meet nowhere but in attention, so a model is refused unless, at load, what it computes in pages equals
what it computes by itself.
"""

from __future__ import annotations

import contextlib
import copy
import itertools
from collections.abc import Callable, Collection, Iterator
from typing import Any

import torch
from torch import Tensor

from gpu.attention import Spec, StepAttention
from gpu.cpu.library import Kernels
from gpu.kv_pool import KvShape
from gpu.models.base import Inputs, Model, Tap
from gpu.models.mixture import Mixture
from gpu.models.self_test import check_paged
from gpu.weights import Tensors, fill
from protocols.config import ModelCard
from protocols.errors import StartError

_names = (f"troupe_paged_{number}" for number in itertools.count())


class Unsupported(Exception):
    """The model asks attention for something that pages cannot give."""


class _Bridge:
    """transformers' attention, over the pages of the step that runs."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self.step: StepAttention | None = None
        self.layer = 0

    def attend(
        self,
        module: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        scaling: float | None = None,
        sliding_window: int | None = None,
        softcap: float | None = None,
        s_aux: Tensor | None = None,
        position_bias: Tensor | None = None,
        **unused: Any,
    ) -> tuple[Tensor, None]:
        """transformers' attention function: [1, heads, T, dim] each, to [1, T, heads, value_dim]."""
        if attention_mask is not None or position_bias is not None:
            raise Unsupported("its attention adds a mask or a bias of its own.")
        assert self.step is not None
        spec = Spec(
            scale=query.shape[-1] ** -0.5 if scaling is None else float(scaling),
            window=sliding_window or 0,
            softcap=softcap or 0.0,
        )
        q, k, v = (x[0].transpose(0, 1).to(self.dtype) for x in (query, key, value))
        out = self.step.attend(self.layer, q, k, v, spec, s_aux)
        self.layer += 1
        return out[None].to(query.dtype), None


class TransformersModel:
    """`gpu.models.base.Model` of a transformers model. It takes no adapters."""

    lora = None
    greedy = None

    def __init__(self, vocab_size: int, dtype: torch.dtype, name: str) -> None:
        """`name`: under which our attention is registered. The model itself comes next."""
        self.model: Any = None
        self.name = name
        self._vocab_size = vocab_size
        self._bridge = _Bridge(dtype)
        self._kv: tuple[KvShape, ...] = ()

    @classmethod
    def load(
        cls,
        card: ModelCard,
        tensors: Tensors,
        dtype: torch.dtype,
        device: torch.device,
        progress: Callable[[str], None],
        kernels: Kernels | None = None,
    ) -> TransformersModel:
        """Load, examine and test the model of `card` with its `tensors`. StartError when it cannot be served
        exactly."""
        progress("importing transformers")
        from gpu.models import transformers_loading as loading

        config = loading.read_config(card)
        name = next(_names)
        self = cls(card.vocab_size, dtype, name)
        loading.register_attention(name, self._bridge.attend)
        progress("loading weights through transformers")
        self.model = loading.load_weights(card, tensors, config, dtype, device, name)
        try:
            loading.check_windows(card, config, self._probe(device))
            check_paged(self, self._own_logits, dtype, device, card, kernels)
        except StartError:
            raise
        except Exception as error:
            # Whatever the model's own code raises when it runs in a way that it was not written for.
            reason = loading.first_line(error)
            raise StartError(f"{card.architecture} cannot be served in pages: {reason}") from error
        return self

    @property
    def kv(self) -> tuple[KvShape, ...]:
        """See `Model.kv`."""
        return self._kv

    @property
    def mixtures(self) -> dict[int, Mixture]:
        """There are none that can be counted."""
        return {}

    def take_adapters(self, other: Model) -> None:
        """There are none."""

    def forward(self, inputs: Inputs) -> Tensor:
        """See `Model.forward`."""
        assert inputs.adapters is None
        self._bridge.step, self._bridge.layer = inputs.attention, 0
        with _caught(self.model.base_model, inputs.tap):
            out = self.model(
                input_ids=inputs.tokens[None],
                position_ids=inputs.positions[None],
                use_cache=False,
                logits_to_keep=0 if inputs.rows is None else inputs.rows,
            )
        self._bridge.step = None
        return out.logits[0, :, : self._vocab_size].float()

    def wanted(self) -> dict[str, Tensor]:
        """See `Model.wanted`."""
        return dict(self.model.named_parameters())

    def ignores(self, name: str) -> bool:
        """See `Model.ignores`: buffers, which no checkpoint changes, and a second name of a parameter."""
        return name not in self.wanted() and name in self.model.state_dict()

    def renewed(
        self, tensors: Tensors, changed: Collection[str], progress: Callable[[str], None]
    ) -> TransformersModel:
        """See `Model.renewed`."""
        parameters = self.wanted()
        kept = {id(tensor): tensor for tensor in (*self.model.parameters(), *self.model.buffers())}
        fresh = copy.copy(self)
        fresh.model = copy.deepcopy(self.model, kept)
        targets = {name: torch.empty_like(parameters[name]) for name in changed if name in parameters}
        fill(tensors, targets, progress)
        replaced = {id(parameters[name]): torch.nn.Parameter(new, False) for name, new in targets.items()}
        for module in fresh.model.modules():
            for name, parameter in module._parameters.items():
                if id(parameter) in replaced:
                    module._parameters[name] = replaced[id(parameter)]
        return fresh

    def read(self, name: str) -> Tensor:
        """See `Model.read`."""
        tensor: Tensor = self.model.state_dict()[name]
        return tensor

    def parts(self) -> Iterator[tuple[str, Tensor]]:
        """See `Model.parts`."""
        yield from self.wanted().items()

    def _probe(self, device: torch.device) -> tuple[int, ...]:
        """Run one token to learn what each attention layer keeps; the layers' windows."""
        probe = _Probe()
        zero = torch.zeros(1, dtype=torch.int64, device=device)
        self.forward(Inputs(zero, zero, probe))
        self._kv = tuple(probe.shapes)
        if not self._kv:
            raise Unsupported("it does not attend through transformers' attention interface.")
        return tuple(probe.windows)

    def _own_logits(self, tokens: Tensor) -> Tensor:
        """[len(tokens), vocab] as transformers computes them without us."""
        self.model.set_attn_implementation("eager")
        try:
            out = self.model(input_ids=tokens[None], use_cache=False)
        finally:
            self.model.set_attn_implementation(self.name)
        return out.logits[0, :, : self._vocab_size].float()


@contextlib.contextmanager
def _caught(body: Any, tap: Tap | None) -> Iterator[None]:
    """While the model below the head runs, catch what it hands to the head."""
    if tap is None:
        yield
        return

    def catch(_module: Any, _inputs: Any, output: Any) -> None:
        tap.states = output[0][0].index_select(0, tap.rows)

    hook = body.register_forward_hook(catch)
    try:
        yield
    finally:
        hook.remove()


class _Probe:
    """A `StepAttention` of a single row, which sees itself alone, that notes what it is asked."""

    def __init__(self) -> None:
        self.shapes: list[KvShape] = []
        self.windows: list[int] = []

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, spec: Spec, sinks: Tensor | None = None
    ) -> Tensor:
        """See `StepAttention.attend`."""
        assert layer == len(self.shapes)
        self.shapes.append(KvShape(key.shape[1], key.shape[2], value.shape[2]))
        self.windows.append(spec.window)
        return value.repeat_interleave(query.shape[1] // key.shape[1], dim=1)
