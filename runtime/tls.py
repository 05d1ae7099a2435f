"""TLS for a connection, sans-I/O: bytes of the network in, bytes of the application out, and back.

    network ─► decrypt ─► application          application ─► encrypt ─► network

Python's `ssl` works on two memory buffers, so our transport stays the one that reads, writes and waits. TLS
1.2 and 1.3; no renegotiation, no compression.
"""

from __future__ import annotations

import contextlib
import ssl

from protocols.config import Config
from protocols.errors import StartError

_PIECE = 65536


def server_context(config: Config) -> ssl.SSLContext | None:
    """The certificate that the options name; None without one. Raises StartError with a sentence."""
    if not config.tls_cert:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION
    context.set_alpn_protocols(["http/1.1"])
    try:
        context.load_cert_chain(config.tls_cert, config.tls_key or None, password=_no_password)
    except ssl.SSLError as error:
        raise StartError(
            f"{config.tls_cert} holds no certificate, or not that of its key: {error.reason}."
        ) from error
    except OSError as error:
        files = " or ".join(filter(None, (config.tls_cert, config.tls_key)))
        raise StartError(f"cannot read the certificate {files}: {error.strerror}.") from error
    return context


def _no_password() -> bytes:
    raise StartError("the TLS key is encrypted; Troupe needs one without a password.")


class Tls:
    """One connection's cipher. Methods raise ssl.SSLError where the peer breaks the protocol."""

    def __init__(self, context: ssl.SSLContext) -> None:
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._object = context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        self.established = False

    def pending(self) -> bytes:
        """What is to be sent to the peer now."""
        return self._outgoing.read()

    def shake(self, data: bytes) -> None:
        """Take the handshake on by what has come."""
        self._incoming.write(data)
        try:
            self._object.do_handshake()
            self.established = True
        except ssl.SSLWantReadError:
            pass

    def decrypt(self, data: bytes) -> tuple[bytes, bool]:
        """What `data` means to the application, and whether the peer ends here."""
        self._incoming.write(data)
        plain = bytearray()
        try:
            while piece := self._object.read(_PIECE):
                plain += piece
        except ssl.SSLWantReadError:
            return bytes(plain), False
        except ssl.SSLZeroReturnError:
            pass
        return bytes(plain), True

    def encrypt(self, data: bytes | bytearray) -> bytes:
        """`data` as it travels."""
        self._object.write(data)
        return self._outgoing.read()

    def end(self) -> bytes:
        """The goodbye: nothing more will be sent."""
        with contextlib.suppress(ssl.SSLError):
            self._object.unwrap()
        return self._outgoing.read()
