"""A thought as an opaque text that a client keeps and sends back: `reasoning.encrypted_content`.

Nothing is secret in it, as the thought is shown in the clear beside it: it serves clients that keep no other
part of a thought, because other servers show them none.
"""

from __future__ import annotations

import base64

_MARK = "troupe1."


def seal(thought: str) -> str:
    """The text that stands for a thought."""
    return _MARK + base64.urlsafe_b64encode(thought.encode()).decode()


def unseal(text: str) -> str:
    """The thought, "" where the text was not made here."""
    try:
        return base64.urlsafe_b64decode(text.removeprefix(_MARK)).decode() if text.startswith(_MARK) else ""
    except ValueError:
        return ""
