"""The admin socket: who may ask what of a running company, on both ends.

A frame (`runtime.frames`) holds a msgpack map. A request is {"verb": name, ...}; its answer is
{"ok": true, ...} or {"ok": false, "code": word, "error": sentence}, preceded by any number of frames with
{"more": true, ...} where a verb streams. Verbs are a table that the server is given.

An address that begins with "@" is in Linux's abstract namespace: it vanishes with its process even
after SIGKILL. Whoever connects must be the owner's user or root (SO_PEERCRED), and a client makes sure
of the same before it believes an answer, as abstract names are free for anybody to take.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import msgspec
import trio

from protocols.errors import PeerError, TroupeError, VerbError
from runtime import frames

LIMIT = 1024 * 1024
"""Longest frame in bytes."""
CONNECTIONS = 32
"""Administrators at once."""
PATIENCE = 30.0
"""Seconds for a frame to arrive whole, or to be taken."""

_CREDENTIALS = struct.Struct("iII")

Scalar = None | bool | int | float | str
Value = Scalar | list[Scalar | list[Scalar]] | dict[str, Scalar | list[Scalar]]
"""What a request may hold: values three levels deep."""
Request = dict[str, Value]
Reply = dict[str, Any]
Send = Callable[[Reply], Awaitable[None]]
Verb = Callable[[Request, Send], Awaitable[Reply]]

_decode_request: Callable[[bytes], Request] = msgspec.msgpack.Decoder(Request).decode
_decode_reply: Callable[[bytes], Reply] = msgspec.msgpack.Decoder(dict[str, Any]).decode
_encode = msgspec.msgpack.Encoder().encode


class Unreachable(TroupeError):
    """No company answers at this address."""


def address(name: str, path: str = "") -> str:
    """Where the company `name` of this user listens: `path` if given, else an abstract name."""
    return path or f"@troupe-{os.geteuid()}-{name}"


def describe(address: str) -> str:
    """An address as people know it: the company's name, or where its socket lies."""
    return f"named {address.split('-', 2)[2]}" if address.startswith("@") else f"at {address}"


def names() -> list[str]:
    """The companies of this user whose sockets are abstract."""
    prefix = address("")
    with open("/proc/net/unix") as table:
        ends = {line.split()[-1] for line in table}
    return sorted(end.removeprefix(prefix) for end in ends if end.startswith(prefix))


def native(address: str) -> str:
    """The address as the socket module wants it."""
    return f"\0{address[1:]}" if address.startswith("@") else address


def peer(sock: trio.socket.SocketType) -> tuple[int, int]:
    """(pid, user id) of the process at the other end of a unix socket."""
    pid, uid, _ = _CREDENTIALS.unpack(
        sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    )
    return pid, uid


def is_trusted(uid: int) -> bool:
    """Whether a user may administer this process's company: its own user and root."""
    return uid in {0, os.geteuid()}


async def send_frame(stream: trio.abc.SendStream, frame: Reply | Request) -> None:
    """Write one frame."""
    await frames.send(stream, _encode(frame))


# Server.


class Server:
    """Answers requests from a table of verbs."""

    def __init__(self, listener: socket.socket, verbs: Mapping[str, Verb], log: Any) -> None:
        self._listener = listener
        self._verbs = verbs
        self._log = log
        self._places = trio.CapacityLimiter(CONNECTIONS)

    async def run(self) -> None:
        """Serve until cancelled."""
        async with trio.open_nursery() as nursery:
            listener = trio.SocketListener(trio.socket.from_stdlib_socket(self._listener))
            await trio.serve_listeners(self._serve, [listener], handler_nursery=nursery)

    async def _serve(self, stream: trio.SocketStream) -> None:
        pid, uid = peer(stream.socket)
        if not is_trusted(uid):
            self._log.warning("administrator refused", peer_pid=pid, peer_uid=uid)
            return
        try:
            async with self._places:
                while (data := await self._next(stream)) is not None:
                    await self._send(stream, await self._answer(stream, data))
        except (PeerError, trio.BrokenResourceError, trio.TooSlowError) as error:
            self._log.info("administrator dropped", peer_pid=pid, error=str(error))

    async def _next(self, stream: trio.SocketStream) -> bytes | None:
        with trio.fail_after(PATIENCE):
            return await frames.receive(stream, LIMIT)

    async def _send(self, stream: trio.SocketStream, frame: Reply) -> None:
        """A deadline, because whoever does not read would keep a place for ever."""
        with trio.fail_after(PATIENCE):
            await send_frame(stream, frame)

    async def _answer(self, stream: trio.SocketStream, data: bytes) -> Reply:
        async def more(reply: Reply) -> None:
            await self._send(stream, {"more": True, **reply})

        try:
            request = _decode_request(data)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise PeerError(f"not a request: {error}") from error
        try:
            return {"ok": True, **await self._verb(request)(request, more)}
        except VerbError as error:
            return {"ok": False, "code": error.code, "error": str(error)}
        except (trio.BrokenResourceError, trio.TooSlowError):
            raise
        except Exception as error:
            # A verb that is wrong must not end the supervisor, and with it the company.
            self._log.exception("verb failed", verb=request.get("verb"))
            return {"ok": False, "code": "internal", "error": f"{type(error).__name__}: {error}"}

    def _verb(self, request: Request) -> Verb:
        name = request.get("verb")
        verb = self._verbs.get(name) if isinstance(name, str) else None
        if verb is None:
            raise VerbError(
                "usage", f"there is no verb {name!r}; there are {', '.join(sorted(self._verbs))}."
            )
        return verb


# Client.


async def call(address: str, request: Request, more: Callable[[Reply], None] | None = None) -> Reply:
    """Ask once and return the answer; `more` sees what is streamed before it.

    Raises Unreachable where nobody (or a stranger) listens or the company ends meanwhile, and
    VerbError where it refuses.
    """
    stream = await _connect(address)
    async with stream:
        try:
            await send_frame(stream, request)
            return await _reply(stream, more)
        except (trio.BrokenResourceError, PeerError, msgspec.MsgspecError) as error:
            raise Unreachable(f"the company {describe(address)} broke off: {error}") from error


async def _connect(address: str) -> trio.SocketStream:
    sock = trio.socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        await sock.connect(native(address))
    except OSError as error:
        sock.close()
        others = f"; there are {', '.join(known)}" if (known := names()) else ""
        reason = error.strerror or error
        raise Unreachable(f"no company {describe(address)} is running ({reason}){others}.") from error
    stream = trio.SocketStream(sock)
    _, uid = peer(stream.socket)
    if not is_trusted(uid):
        await stream.aclose()
        raise Unreachable(f"the company {describe(address)} belongs to another user (uid {uid}).")
    return stream


async def _reply(stream: trio.SocketStream, more: Callable[[Reply], None] | None) -> Reply:
    while (data := await frames.receive(stream, LIMIT)) is not None:
        reply = _decode_reply(data)
        if reply.pop("more", False):
            if more is not None:
                more(reply)
        elif reply.pop("ok", False):
            return reply
        else:
            raise VerbError(str(reply.get("code", "failed")), str(reply.get("error", "refused")))
    raise PeerError("it ended before it answered")


def ask(
    address: str, request: Request, more: Callable[[Reply], None] | None = None, *, timeout: float = 10.0
) -> Reply:
    """`call` for programs without Trio. Raises TimeoutError after `timeout` seconds too."""

    async def body() -> Reply:
        with trio.move_on_after(timeout):
            return await call(address, request, more)
        raise TimeoutError(f"the company {describe(address)} did not answer within {timeout:g} s.")

    return trio.run(body)
