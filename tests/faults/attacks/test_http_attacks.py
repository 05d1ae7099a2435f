"""Raw bytes at the HTTP port: framing, smuggling, heads, paths, slowness, floods."""

from __future__ import annotations

import contextlib
import json
import socket
import time

from tests.faults.attacks.siege import (
    COMPLETIONS,
    PATIENCE,
    besieged,
    completion,
    connect,
    post,
    status_of,
    talk,
)
from tests.serving import ROOT, Company

HOST = b"host: localhost\r\n"
LAST = HOST + b"connection: close\r\n"
HIDDEN = b"GET /version HTTP/1.1\r\nhost: localhost\r\n\r\n"
POST = b"POST /v1/completions HTTP/1.1\r\n" + HOST

SMUGGLING = {
    "length and chunks": b"content-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunks and length": b"transfer-encoding: chunked\r\ncontent-length: 5\r\n\r\n0\r\n\r\n",
    "two lengths": b"content-length: 0\r\ncontent-length: 44\r\n\r\n",
    "a list of lengths": b"content-length: 0, 44\r\n\r\n",
    "a signed length": b"content-length: +0\r\n\r\n",
    "a negative length": b"content-length: -1\r\n\r\n",
    "a length in hexadecimal": b"content-length: 0x0\r\n\r\n",
    "a length of 5000 digits": b"content-length: " + b"9" * 5000 + b"\r\n\r\n",
    "a length with a space inside": b"content-length: 0 0\r\n\r\n",
    "an unknown coding": b"transfer-encoding: xchunked\r\n\r\n0\r\n\r\n",
    "two codings": b"transfer-encoding: chunked, identity\r\n\r\n0\r\n\r\n",
    "two coding headers": b"transfer-encoding: chunked\r\ntransfer-encoding: identity\r\n\r\n0\r\n\r\n",
    "a space before the colon": b"transfer-encoding : chunked\r\n\r\n0\r\n\r\n",
    "a folded coding": b"transfer-encoding:\r\n chunked, x\r\n\r\n0\r\n\r\n",
    "a vertical tab": b"transfer-encoding: \x0bchunked\r\n\r\n0\r\n\r\n",
    "a NUL": b"transfer-encoding: chunked\x00\r\n\r\n0\r\n\r\n",
    "a chunk that overflows": b"transfer-encoding: chunked\r\n\r\n" + b"f" * 30 + b"\r\nx\r\n0\r\n\r\n",
    "a negative chunk": b"transfer-encoding: chunked\r\n\r\n-1\r\nx\r\n0\r\n\r\n",
    "a chunk without an end": b"transfer-encoding: chunked\r\n\r\n1\r\nxyz\r\n0\r\n\r\n",
}

HEADS = {
    "no host": b"GET /version HTTP/1.1\r\n\r\n",
    "two hosts": b"GET /version HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n",
    "a line without a colon": b"GET /version HTTP/1.1\r\n" + HOST + b"nonsense\r\n\r\n",
    "a control character": b"GET /version HTTP/1.1\r\n" + HOST + b"a: b\x00c\r\n\r\n",
    "a bare carriage return": b"GET /version HTTP/1.1\r\n" + HOST + b"a: b\rc: d\r\n\r\n",
    "no method": b" /version HTTP/1.1\r\n" + HOST + b"\r\n",
    "HTTP/0.9": b"GET /version\r\n\r\n",
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\r\n\r\n",
    "bytes that are no text": b"GET /\xff\xfe HTTP/1.1\r\n" + HOST + b"\r\n",
    "pickle": b"\x80\x04\x95\x1a\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix\x94\x8c\x06system\x94.\r\n\r\n",
    "a line of a megabyte": b"GET /" + b"a" * 1_000_000,
    "a header of a megabyte": b"GET /version HTTP/1.1\r\na: " + b"b" * 1_000_000,
    "a million headers": b"GET /version HTTP/1.1\r\n" + b"a: b\r\n" * 1_000_000,
}

PATHS = (
    b"//version", b"/./version", b"/v1/../version", b"/version/", b"/version/..", b"/%2e%2e/version",
    b"/version%00", b"/v1/models/..%2f..%2fetc%2fpasswd", b"/v1/models//etc/passwd", b"/v1/models/%00",
    b"/v1/responses/" + b"a" * 300, b"/v1/responses/resp_%ff%fe", b"/v1/responses/resp_zz_1/cancel",
    b"/\\version", b"http://evil.example/admin/keys", b"*", b"/v1/models/%0d%0ax-injected:%20yes",
    b"/%0d%0ax-injected:%20yes", b"/admin/keys/", b"/ADMIN/keys",
)  # fmt: skip


def test_smuggling(company: Company) -> None:
    with besieged(company):
        for name, tail in SMUGGLING.items():
            answer = talk(company, POST + tail + HIDDEN)
            assert status_of(answer) in (400, 413, 501), (name, answer[:200])
            assert answer.count(b"HTTP/1.1 ") == 1 and b'"version"' not in answer, (name, answer)


def test_heads(company: Company) -> None:
    with besieged(company):
        for name, head in HEADS.items():
            answer = talk(company, head)
            assert status_of(answer) in (400, 431, 505), (name, answer[:200])
            assert (b"\n" + answer).count(b"\nHTTP/1.1 ") == 1, name


def test_paths(company: Company) -> None:
    with besieged(company):
        for path in PATHS:
            for method in (b"GET", b"POST", b"CONNECT"):
                answer = talk(
                    company, method + b" " + path + b" HTTP/1.1\r\nconnection: close\r\n" + HOST + b"\r\n"
                )
                assert status_of(answer) in (400, 401, 403, 404, 405), (method, path, answer[:300])
                assert b"x-injected" not in answer.partition(b"\r\n\r\n")[0]
                assert str(ROOT).encode() not in answer and b"Error(" not in answer


def test_forged_ids_are_not_taken(company: Company) -> None:
    head = (
        b"GET /version HTTP/1.1\r\n"
        + HOST
        + b"connection: close\r\nx-request-id: forged\r\nx-request-id: again\r\n\r\n"
    )
    assert b"forged" not in talk(company, head)


def test_slow_heads_and_bodies(company: Company) -> None:
    """Sixteen of each that send a byte now and then: refused by their deadlines."""
    with besieged(company), contextlib.ExitStack() as stack:
        heads = [stack.enter_context(connect(company)) for _ in range(16)]
        bodies = [stack.enter_context(connect(company)) for _ in range(16)]
        for sock in bodies:
            sock.sendall(POST + b"content-length: 1000\r\n\r\n{")
        open_ = set(heads + bodies)
        deadline = time.monotonic() + PATIENCE
        while open_:
            assert time.monotonic() < deadline, len(open_)
            for sock in tuple(open_):
                try:
                    sock.sendall(b"a")
                    sock.settimeout(0.002)
                    data = sock.recv(65536)
                except TimeoutError:
                    continue
                except ConnectionError:
                    data = b""
                assert status_of(data) in (0, 400, 408), data[:200]
                open_.discard(sock)


def test_silent_connections_give_way(company: Company) -> None:
    """Twice as many as there may be, which say nothing, or half a head."""
    with besieged(company), contextlib.ExitStack() as stack:
        for i in range(130):
            sock = stack.enter_context(connect(company))
            if i % 2:
                sock.sendall(b"GET / HTT")
        assert post(company, COMPLETIONS, completion(company))[0] == 200


def test_clients_that_do_not_read(company: Company) -> None:
    """Thousands of requests at once, of which no answer is read; streams that nobody reads."""
    body = json.dumps(completion(company, max_tokens=400, stream=True)).encode()
    stream = POST + b"content-length: %d\r\n\r\n" % len(body) + body
    with besieged(company), contextlib.ExitStack() as stack:
        for i in range(8):
            sock = stack.enter_context(connect(company))
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            sock.settimeout(0.5)
            with contextlib.suppress(OSError):
                sock.sendall(stream if i % 2 else HIDDEN * 10_000)


def test_clients_that_vanish(company: Company) -> None:
    """Connections that are reset in the middle of a head, a body and an answer."""
    body = json.dumps(completion(company, max_tokens=300, stream=True)).encode()
    stream = POST + b"content-length: %d\r\n\r\n" % len(body) + body
    linger = b"\x01\0\0\0\0\0\0\0"
    with besieged(company):
        for cut in range(1, len(stream), 9):
            with connect(company) as sock:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                sock.sendall(stream[:cut])
        for _ in range(20):
            with connect(company) as sock:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                sock.sendall(stream)
                sock.recv(10)


def test_a_body_larger_than_allowed(company: Company) -> None:
    with besieged(company):
        for head in (b"content-length: 100000000\r\n\r\n", b"transfer-encoding: chunked\r\n\r\n5F5E100\r\n"):
            answer = talk(company, POST + head + bytes(8_000_000))
            assert status_of(answer) == 413
