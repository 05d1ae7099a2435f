"""What a request may call its model: the base model, an adapter, or `base:adapter`."""

from __future__ import annotations

from collections.abc import Iterable

from protocols.adapters import Adapter
from protocols.errors import UserError


class Adapters:
    """The model `base` and the adapters that are loaded."""

    def __init__(self, base: str) -> None:
        self._base = base
        self._by_name: dict[str, Adapter] = {}

    def set(self, adapters: Iterable[Adapter]) -> None:
        """Replace the list of loaded adapters."""
        self._by_name = {adapter.name: adapter for adapter in adapters}

    def names(self) -> list[str]:
        """The names of all adapters, in the order of loading."""
        return list(self._by_name)

    def find(self, model: str | None, lora: object = None) -> Adapter | None:
        """The adapter that a request's `model` names, or its `lora_path`; None for the base model. UserError
        where there is no such model."""
        if model is None:
            raise UserError(
                "Missing required parameter: 'model'.", param="model", code="missing_required_parameter"
            )
        found = self._named(model)
        if lora is None:
            return found
        if not isinstance(lora, str):
            raise UserError("lora_path must be the name of a loaded adapter.", param="lora_path")
        named = self._by_name.get(lora)
        if named is None:
            raise UserError(
                f"The adapter '{lora[:200]}' is not loaded.",
                status=404,
                code="model_not_found",
                param="lora_path",
            )
        if found not in (None, named):
            raise UserError("model and lora_path name different adapters.", param="lora_path")
        return named

    def _named(self, model: str) -> Adapter | None:
        if model == self._base:
            return None
        name = model.removeprefix(f"{self._base}:")
        if name not in self._by_name:
            raise UserError(
                f"The model '{model[:200]}' does not exist.",
                status=404,
                code="model_not_found",
                param="model",
            )
        return self._by_name[name]
