"""Chat templates rendered by helper processes, each prompt within a deadline."""

from __future__ import annotations

from typing import Any

from actors.tokenizer.helpers import Died, Helpers, TooSlow
from actors.tokenizer.render_helper import Sources
from protocols.errors import UserError
from protocols.request import ChatPrompt


class Renderers:
    """Renders one model's templates; `close` it at the end. seconds: of one prompt."""

    def __init__(self, sources: Sources, seconds: float, log: Any) -> None:
        self._seconds = seconds
        module = "actors.tokenizer.render_helper"
        self.helpers = Helpers(module, lambda: sources, seconds, log, early=True)

    async def render(self, prompt: ChatPrompt) -> str:
        """The prompt's text. Raises UserError."""
        try:
            return await self.helpers.ask(prompt)
        except TooSlow:
            message = f"the chat template did not render these messages within {self._seconds:g} s."
        except Died:
            message = "the chat template died of these messages."
        raise UserError(message, param="messages")

    def close(self) -> None:
        """End the helpers."""
        self.helpers.close()
