"""Pages for people, the chat at `/` and the company at `/_company`: each a file of markup, style and script,
with headers that let it do what it must alone.

The policy names the page's own style and script by their hashes, so nothing else runs in it, whatever a model
says; it may speak to the server that it came from, and to nobody else.
"""

from __future__ import annotations

import base64
import hashlib
import pathlib
import re

from runtime.exchange import Exchange
from runtime.http_wire import Headers

HTML = "text/html; charset=utf-8"


class Page:
    """A page as it lies there when the frontend starts. file: its name, beside this module."""

    def __init__(self, file: str) -> None:
        self._body = pathlib.Path(__file__).with_name(file).read_bytes()
        self._headers = headers(self._body)

    async def show(self, exchange: Exchange) -> None:
        """Answer a GET."""
        await exchange.respond(200, self._body, kind=HTML, headers=self._headers)


def headers(page: bytes) -> Headers:
    """What a browser is told about `page`."""
    policy = (
        "default-src 'none'",
        f"script-src {_hashes(page, b'script')}",
        f"style-src {_hashes(page, b'style')}",
        "img-src data:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
    return (
        ("cache-control", "no-cache"),
        ("content-security-policy", "; ".join(policy)),
        ("cross-origin-opener-policy", "same-origin"),
        ("cross-origin-resource-policy", "same-origin"),
        ("permissions-policy", "camera=(), geolocation=(), microphone=(), payment=(), usb=()"),
        ("referrer-policy", "no-referrer"),
        ("x-content-type-options", "nosniff"),
        ("x-frame-options", "DENY"),
    )


def _hashes(page: bytes, tag: bytes) -> str:
    """The sources of a policy that allow the inline elements `tag` of `page`."""
    inline = re.findall(b"<%b>(.*?)</%b>" % (tag, tag), page, re.DOTALL)
    digests = (base64.b64encode(hashlib.sha256(each).digest()).decode() for each in inline)
    return " ".join(f"'sha256-{digest}'" for digest in digests)
