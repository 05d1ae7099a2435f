"""Grammars made by helper processes, each within a deadline; what was made is kept a while."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

from actors.tokenizer.codec import Codec
from actors.tokenizer.grammar_helper import Language, Wish
from actors.tokenizer.helpers import Died, Helpers, TooSlow
from protocols.config import Config
from protocols.errors import UserError
from protocols.grammar import CACHED_GRAMMARS


class Grammars:
    """Makes grammars for one model; `close` it at the end."""

    def __init__(self, config: Config, codec: Codec, log: Any) -> None:
        def language() -> Language:
            return Language(codec.serialised(), codec.special_tokens, config)

        self._seconds = config.grammar_seconds
        self._made: OrderedDict[Wish, str] = OrderedDict()
        module = "actors.tokenizer.grammar_helper"
        self.helpers = Helpers(module, language, config.grammar_seconds, log, early=False)

    async def make(self, wish: Wish) -> str:
        """The grammar. Raises UserError."""
        made = self._made.get(wish) or await self._ask(wish)
        self._made[wish] = made
        self._made.move_to_end(wish)
        while len(self._made) > CACHED_GRAMMARS:
            self._made.popitem(last=False)
        return made

    async def _ask(self, wish: Wish) -> str:
        shape = wish.rules.shape
        param = shape.param if shape is not None else "tools"
        try:
            return await self.helpers.ask(wish)
        except TooSlow:
            message = f"{param} cannot be used: to read it took more than {self._seconds:g} s."
        except Died:
            message = f"{param} cannot be used: it is more than the library can read."
        raise UserError(message, param=param)

    def close(self) -> None:
        """End the helpers."""
        self.helpers.close()
