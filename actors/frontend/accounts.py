"""What each key may still do: open choices, tokens a minute, WebSockets, counted over all frontends.

One account is the same key at one frontend. It counts in this frontend's rows of the vault and reads the
others', so no request waits for another process: two frontends that admit at the same moment may
together pass a limit by one request each.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import time
from collections.abc import Callable, Iterator

from actors.frontend.bucket import MINUTE, Bucket, wait_for_room
from protocols.errors import UserError
from protocols.keys import Key
from protocols.stored import decode_stored
from runtime.ledger import Ledger
from runtime.vault import Use, Vault

Headers = tuple[tuple[str, str], ...]


class Account:
    """A key at work. key: as the key file has it now; valid: False once it is gone from there."""

    def __init__(self, key: Key, vault: Vault, frontend: int, slot: int) -> None:
        self.key = key
        self.valid = True
        self._rows = [vault.row(f, slot) for f in range(vault.frontends)]
        self._row = self._rows[frontend]
        self._bucket = Bucket(self._row)

    def admit(self, choices: int) -> Callable[[], None]:
        """Begin a request; returns what is to be called at its end. Raises UserError: 400 for what can never
        be, 429 for what cannot be now."""
        limits = self.key.limits
        if limits.concurrency and choices > limits.concurrency:
            raise UserError(
                f"This request has {choices} choices; this key may have {limits.concurrency} open at once.",
                param="n",
            )
        if limits.concurrency and self._sum(Use.RUNNING) + choices > limits.concurrency:
            raise _limited(f"This key may have {limits.concurrency} requests running at once.", 1)
        wait = wait_for_room(self._debt(), limits.tokens_per_minute) if limits.tokens_per_minute else 0
        if wait:
            raise _limited(f"This key may use {limits.tokens_per_minute} tokens a minute.", wait)
        return self._hold(Use.RUNNING, choices)

    def inherit(self, ledger: Ledger, rid: int) -> Callable[[], None]:
        """A choice of this key whose frontend died goes on, and keeps its place. Returns what is to be called
        once, at its end: it charges what the dead one did not."""
        leave = self._hold(Use.RUNNING, 1)

        def settle() -> None:
            leave()
            tokens = _tokens(ledger, rid)
            self.charge(max(0, tokens - ledger.billed(rid)))
            ledger.set_billed(rid, tokens)

        return settle

    def charge(self, tokens: int) -> None:
        """Tokens of prompt or output."""
        self._row[Use.SPENT] += tokens

    @contextlib.contextmanager
    def connected(self) -> Iterator[None]:
        """Around an open WebSocket. Raises UserError 429."""
        most = self.key.limits.sockets
        if most and self._sum(Use.CONNECTED) >= most:
            raise UserError(
                f"This key may have {most} WebSockets open at once.",
                status=429,
                type="rate_limit_error",
                code="websocket_connection_limit_reached",
                retry_after=1,
            )
        leave = self._hold(Use.CONNECTED, 1)
        try:
            yield
        finally:
            leave()

    def used(self) -> dict[str, int]:
        """What is open now, and the tokens so far, at all frontends together."""
        return {use.name.lower(): self._sum(use) for use in (Use.RUNNING, Use.CONNECTED, Use.SPENT)}

    def salted(self, salt: str) -> str:
        """A request's cache salt: the key's own where its prefixes are not for others to find."""
        if not self.key.limits.private_cache:
            return salt
        return hashlib.sha256(f"{self.key.name}\0{salt}".encode("utf-8", "surrogatepass")).hexdigest()

    def headers(self) -> Headers:
        """The rate-limit headers of an answer, by OpenAI's names."""
        limits, headers = self.key.limits, list[tuple[str, str]]()
        if limits.concurrency:
            left = max(0, limits.concurrency - self._sum(Use.RUNNING))
            headers += [
                ("x-ratelimit-limit-concurrency", str(limits.concurrency)),
                ("x-ratelimit-remaining-concurrency", str(left)),
            ]
        if limits.tokens_per_minute:
            debt, rate = self._debt(), limits.tokens_per_minute
            headers += [
                ("x-ratelimit-limit-tokens", str(rate)),
                ("x-ratelimit-remaining-tokens", str(max(0, math.floor(rate - debt)))),
                ("x-ratelimit-reset-tokens", f"{debt / rate * MINUTE:.1f}s"),
            ]
        return tuple(headers)

    def look(self) -> None:
        """Read what was spent at other frontends."""
        if self.key.limits.tokens_per_minute:
            self._debt()

    def _debt(self) -> float:
        return self._bucket.debt(self.key.limits.tokens_per_minute, self._sum(Use.SPENT), time.monotonic_ns())

    def _sum(self, use: Use) -> int:
        return sum(row[use] for row in self._rows)

    def _hold(self, use: Use, count: int) -> Callable[[], None]:
        self._row[use] += count

        def give_back() -> None:
            self._row[use] -= count

        return give_back


def _tokens(ledger: Ledger, rid: int) -> int:
    """Tokens of prompt and output of a choice that the ledger knows."""
    submit = decode_stored(ledger.request(rid)).submit
    prompt = len(submit.tokens) // 4 if submit.choice == 0 else 0
    return prompt + len(ledger.committed(rid))


def _limited(message: str, wait: int) -> UserError:
    return UserError(
        message, status=429, type="rate_limit_error", code="rate_limit_exceeded", retry_after=wait
    )
