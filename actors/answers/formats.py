"""Which formats of calls and thoughts there are, and how a model's chat template gives its own away."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from actors.answers.calls import CallParser, HermesCalls, LlamaCalls, MistralCalls

AUTO, NONE = "auto", "none"


@dataclasses.dataclass(frozen=True)
class ToolFormat:
    """A format of calls. parser: reads it. signs: of which a template that uses it contains one. tags: what
    it is written with, shown even if special tokens are not. id_length: characters of a call's id that
    templates insist on, 0 for any number."""

    name: str
    parser: type[CallParser]
    signs: tuple[str, ...]
    tags: tuple[str, ...]
    id_length: int = 0


@dataclasses.dataclass(frozen=True)
class ThoughtFormat:
    """A format of thoughts. tags: the opening and the closing one, by which a template is recognised too, and
    which are shown even if special tokens are not."""

    name: str
    tags: tuple[str, str]


TOOL_FORMATS = {
    each.name: each
    for each in (
        ToolFormat("hermes", HermesCalls, ("<tool_call>",), (HermesCalls.OPEN, HermesCalls.CLOSE)),
        ToolFormat("llama3", LlamaCalls, ("<|python_tag|>", '"parameters": dictionary'), (LlamaCalls.TAG,)),
        ToolFormat(
            "mistral",
            MistralCalls,
            ("[TOOL_CALLS]",),
            (MistralCalls.OPEN, MistralCalls.ARGS, MistralCalls.CALL_ID),
            id_length=9,
        ),
    )
}
"""By name, as `--tool-parser` takes it."""

THOUGHT_FORMATS = {
    each.name: each
    for each in (
        ThoughtFormat("think", ("<think>", "</think>")),
        ThoughtFormat("mistral", ("[THINK]", "[/THINK]")),
    )
}
"""By name, as `--reasoning-parser` takes it."""


def recognised(templates: Iterable[str]) -> tuple[str, str]:
    """The names of the formats of calls and of thoughts that chat templates use, "none" where there is no
    sign."""
    text = "\n".join(templates)
    tools = (each.name for each in TOOL_FORMATS.values() if any(sign in text for sign in each.signs))
    thoughts = (each.name for each in THOUGHT_FORMATS.values() if each.tags[1] in text)
    return next(tools, NONE), next(thoughts, NONE)
