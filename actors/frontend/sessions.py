"""Requests of a session: their prompt begins with what the session holds, and what they add is kept there.

It is kept before the client hears that the answer has ended, so that whoever has heard it can go on.
"""

from __future__ import annotations

import array
import base64
import contextlib
import dataclasses

from actors.frontend import prompts
from actors.frontend.admin_routes import asked
from actors.frontend.service import Service
from protocols.errors import UserError
from protocols.messages import Encode
from protocols.openai.native import DEFAULT_MAX_TOKENS, NativeRequest, SessionParams
from protocols.request import Prompt, TokenPrompt


@dataclasses.dataclass(frozen=True)
class Turn:
    """A request of session `id` that continues request `parent` ("" for none). before: tokens of that; added:
    its own; int32."""

    service: Service
    id: str
    parent: str
    before: bytes
    added: bytes

    @property
    def prompt(self) -> Prompt:
        """All that the model sees."""
        return TokenPrompt(self.before + self.added)

    async def keep(self, rid: str, output: list[int]) -> None:
        """The request has ended, and can be continued as `rid`, unless the session is gone meanwhile."""
        added = self.added + array.array("i", output).tobytes()
        kept = len(self.before) // 4
        with contextlib.suppress(UserError):
            await asked(
                self.service.config,
                {
                    "verb": "session.keep",
                    "id": self.id,
                    "rid": rid,
                    "parent": self.parent,
                    "kept": kept,
                    "added": base64.b64encode(added).decode(),
                    "answer": kept + len(self.added) // 4,
                },
            )


async def begin(service: Service, request: NativeRequest) -> Turn | None:
    """The turn that a request takes; None where it is of no session. Raises UserError."""
    params = request.session_params
    if params is None:
        return None
    if not params.id:
        raise UserError("session_params needs the id of a session.", param="session_params")
    added = await _added(service, request, params)
    sampling = request.sampling_params
    room = DEFAULT_MAX_TOKENS if sampling is None else sampling.max_new_tokens
    room = DEFAULT_MAX_TOKENS if room is None else room
    reply = await asked(
        service.config,
        {
            "verb": "session.go-on",
            "id": params.id,
            "rid": params.rid,
            "offset": params.offset,
            "bare": params.drop_previous_output,
            "replace": params.replace,
            "owner": service.owner,
            "room": len(added) // 4 + min(max(0, room), service.model.context),
        },
    )
    return Turn(service, params.id, params.rid or "", reply["tokens"], added)


async def _added(service: Service, request: NativeRequest, params: SessionParams) -> bytes:
    """The request's own tokens. What continues a text has no special token in front."""
    given = (request.text is None) != (request.input_ids is None)
    single = isinstance(request.text, str) or (request.input_ids and isinstance(request.input_ids[0], int))
    if not given or not single or (request.sampling_params and request.sampling_params.n not in (None, 1)):
        raise UserError("A request of a session has one prompt and one choice.", param="session_params")
    if request.input_ids is not None:
        (prompt,) = prompts.plain_prompts([*request.input_ids], service.model.vocab_size, "input_ids")
        assert isinstance(prompt, TokenPrompt)
        return prompt.tokens
    assert isinstance(request.text, str)
    (prompt,) = prompts.plain_prompts(request.text, service.model.vocab_size, "text")
    encoded = await service.engine.questions.encode(Encode(0, 0, prompt, False if params.rid else None))
    return encoded.tokens
