"""The error tree: ours (crash), the peer's (drop the peer), the user's (a status and a sentence).

Ours is any other exception: an actor that meets one lets it propagate, dies, and is restarted.
"""

from __future__ import annotations

import msgspec


class ErrorBody(msgspec.Struct, frozen=True, array_like=True):
    """A refusal as it travels between actors and ends in a client's error document.

    `status` is an HTTP status; `type` and `code` are OpenAI's names (`invalid_request_error`,
    `context_length_exceeded` ...); `param` names the offending field; `retry_after` is in seconds.
    """

    status: int
    message: str
    type: str = "invalid_request_error"
    code: str | None = None
    param: str | None = None
    retry_after: int | None = None


def computation_failed(message: str) -> ErrorBody:
    """One request could not be computed, through no fault of its client."""
    return ErrorBody(500, message, "server_error", "computation_failed")


class TroupeError(Exception):
    """Base of every error that this project raises on purpose."""


class UserError(TroupeError):
    """The caller's mistake, or bad luck: it is answered with a status and a sentence, and nobody else
    notices."""

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        type: str = "invalid_request_error",
        code: str | None = None,
        param: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message)
        self.body = ErrorBody(status, message, type, code, param, retry_after)

    @classmethod
    def from_body(cls, body: ErrorBody) -> UserError:
        """The exception that carries `body`."""
        error = cls(body.message)
        error.body = body
        return error


def overloaded(message: str) -> UserError:
    """The refusal of a request for which there is no room now, or no time."""
    return UserError(message, status=503, type="overloaded_error", code="server_overloaded", retry_after=1)


class PeerError(TroupeError):
    """A peer broke the protocol (bad frame, bad record, bad bytes): the peer is dropped."""


class StartError(TroupeError):
    """The company cannot start (missing model, bad option, busy port): a sentence and an exit code."""

    def __init__(self, message: str, *, exit_code: int = 1) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class VerbError(TroupeError):
    """An administrator's wish is refused. code: "usage" (also of a file that cannot be used), "not_found",
    "conflict" (the wrong moment), "timeout" or "failed"; "internal" is a bug of ours."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


def several(count: int, noun: str) -> str:
    """A count with its noun: "1 request", "2 requests"."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
