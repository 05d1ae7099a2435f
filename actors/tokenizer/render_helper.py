"""The process that renders chat templates (see `helper_process`): asked prompts, it answers their texts. A
template is the model's and sees text of strangers."""

from __future__ import annotations

import sys

import msgspec

from actors.tokenizer import helper_process
from actors.tokenizer.helper_process import Answer, Answerer
from actors.tokenizer.template import ChatTemplate
from protocols.errors import ErrorBody, UserError
from protocols.request import ChatPrompt


class Sources(msgspec.Struct, frozen=True):
    """The templates of a model and its named special tokens, as `ChatTemplate` takes them."""

    templates: dict[str, str]
    special_tokens: dict[str, str]


def begin(data: bytes) -> Answerer:
    """What answers prompts, made of encoded Sources."""
    sources = msgspec.msgpack.decode(data, type=Sources)
    template = ChatTemplate(sources.templates, sources.special_tokens)
    decode = msgspec.msgpack.Decoder(ChatPrompt).decode
    return lambda question: _rendered(template, decode(question))


def _rendered(template: ChatTemplate, prompt: ChatPrompt) -> Answer:
    try:
        text = template.render(prompt)
        text.encode()
    except UserError as error:
        return error.body
    except UnicodeEncodeError:
        return ErrorBody(400, "the chat template's text is not Unicode.", param="messages")
    return text


if __name__ == "__main__":
    helper_process.main(int(sys.argv[1]), "render_helper", begin)
