"""What `tools.bench.ring` measures: one conversation between two processes, over rings or over pyzmq.

A form is a way to carry messages; every form encodes each message before it sends it and decodes what
it receives with the same codec, in the process that asks for it:

    ring         an actor's own `Outbox` and `Inbox` in a Trio loop (`tools.bench.typed_ring`): a record, a
                 checksum and a bell for every message; a sender that meets a full ring waits as actors do
    ring x16     the same with 16 messages in every `send_nowait`
    zmq          pyzmq's blocking API with no event loop around it (`tools.bench.typed_zmq`), which is its
                 fastest form: PUSH/PULL one way, PAIR for round trips, high-water marks out of the way
    zmq x16      the same with 16 messages encoded into every frame
    zmq in trio  pyzmq as an actor would have to use it: non-blocking calls, parked on the socket's
                 descriptor (round trips only)
    bytes …      the transport alone (`tools.bench.plain`)

In `sink` the peer takes n messages and answers once; in `echo` it sends every message back at once; in `rare`
it does too, but each is sent to a receiver that has slept for two milliseconds.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import trio

from protocols.plan import StepDone
from protocols.wire import encode_batch
from tools.bench import plain, typed_ring, typed_zmq
from tools.bench.typed_ring import Edges

BURST = 16
PLAIN = ("bytes ring", "bytes zmq", "bytes zmq uncopied")
FORMS = {"ring": 1, "ring x16": BURST, "zmq": 1, "zmq x16": BURST, "zmq in trio": 1} | dict.fromkeys(PLAIN, 1)
"""Messages in a call, by form."""


@dataclasses.dataclass(frozen=True)
class Sample:
    """One measurement. nanoseconds: of all n messages one way, or of each round trip. cpu: nanoseconds of
    processor time a message, both processes with all their threads."""

    nanoseconds: tuple[int, ...]
    cpu: float


def message_of(size: int) -> StepDone:
    """A StepDone whose encoding takes `size` bytes, most of it in its two arrays."""
    for room in range(size - 32, size):
        message = StepDone(3, 1000, bytes(room // 2), bytes(room - room // 2), 1500)
        if len(encode_batch((message,))) >= size:
            return message
    raise ValueError(f"no message of {size} bytes")


def measure(form: str, role: str, message: StepDone, n: int) -> Sample:
    """Start the peer, warm both up with n messages, then time n more."""
    rounds = [n // BURST * BURST] * 2
    spec: dict[str, Any] = {"form": form, "role": role, "rounds": rounds}
    with contextlib.ExitStack() as stack:
        match form:
            case "ring" | "ring x16":
                edges = stack.enter_context(contextlib.closing(Edges.create()))
                ended = stack.enter_context(_peer(**spec, fds=edges.fds))
                times, cpu = trio.run(typed_ring.lead, edges, role, message, rounds, FORMS[form])
            case "zmq" | "zmq x16":
                path, sockets = stack.enter_context(typed_zmq.bound(role))
                ended = stack.enter_context(_peer(**spec, path=path))
                times, cpu = typed_zmq.lead(sockets, role, message, rounds, FORMS[form])
            case "zmq in trio":
                path, sockets = stack.enter_context(typed_zmq.bound(role))
                ended = stack.enter_context(_peer(**spec, path=path))
                times, cpu = trio.run(typed_zmq.lead_in_trio, sockets, role, message, rounds)
            case _:
                wire = stack.enter_context(plain.opened(form, role))
                ended = stack.enter_context(_peer(**spec, wire=wire.spec(), fds=wire.descriptors()))
                times, cpu = plain.lead(wire, role, encode_batch((message,)), rounds)
        return Sample(tuple(times), (cpu + ended()) * 1e9 / rounds[-1])


@contextlib.contextmanager
def _peer(**spec: Any) -> Iterator[Callable[[], float]]:
    """The other process; the value is a function that waits for its end and returns its processor
    seconds of the last round."""
    command = [sys.executable, "-m", "tools.bench.transports", json.dumps(spec)]
    with subprocess.Popen(command, pass_fds=spec.get("fds", ()), stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        pipe = process.stdout
        yield lambda: float(pipe.read())


def be_peer(form: str, **spec: Any) -> float:
    """The other process's whole life; returns the processor seconds of its last round."""
    match form:
        case "ring" | "ring x16":
            return trio.run(lambda: typed_ring.follow(**spec))
        case "zmq" | "zmq x16":
            return typed_zmq.follow(**spec)
        case "zmq in trio":
            return trio.run(lambda: typed_zmq.follow_in_trio(**spec))
        case _:
            return plain.follow(**spec)


if __name__ == "__main__":
    print(be_peer(**json.loads(sys.argv[1])))
