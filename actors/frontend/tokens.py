"""`/tokenize` and `/detokenize`."""

from __future__ import annotations

import array

import msgspec

from actors.frontend import chat, prompts
from actors.frontend.service import Service, read
from protocols.errors import UserError
from protocols.messages import Decode, Encode
from protocols.openai.chat import ChatRequest
from protocols.openai.tokens import Detokenized, DetokenizeRequest, Tokenized, TokenizeRequest
from protocols.request import Prompt, TextPrompt
from runtime.exchange import Exchange

_tokenize = msgspec.json.Decoder(TokenizeRequest)
_detokenize = msgspec.json.Decoder(DetokenizeRequest)


async def tokenize(service: Service, exchange: Exchange) -> None:
    """Answer `POST /tokenize`."""
    request = await read(_tokenize, await exchange.body())
    service.adapters.find(request.model or service.model.name)
    names = bool(request.return_token_strs)
    question = Encode(0, 0, _prompt(request), request.add_special_tokens, names)
    encoded = await service.engine.questions.encode(question)
    ids = array.array("i", encoded.tokens).tolist()
    strings = list(encoded.names) if names else None
    await exchange.respond(200, msgspec.json.encode(Tokenized(len(ids), service.model.context, ids, strings)))


async def detokenize(service: Service, exchange: Exchange) -> None:
    """Answer `POST /detokenize`."""
    request = await read(_detokenize, await exchange.body())
    service.adapters.find(request.model or service.model.name)
    tokens = prompts.token_bytes(request.tokens, service.model.vocab_size, "tokens")
    skip = bool(request.skip_special_tokens)
    decoded = await service.engine.questions.decode(Decode(0, 0, tokens, skip))
    await exchange.respond(200, msgspec.json.encode(Detokenized(decoded.text)))


def _prompt(request: TokenizeRequest) -> Prompt:
    if (request.prompt is None) == (request.messages is None):
        raise UserError("Either prompt or messages must be given.", param="prompt")
    if request.messages is None:
        return TextPrompt(request.prompt or "")
    return chat.prompt_of(
        ChatRequest(
            model="",
            messages=request.messages,
            tools=request.tools,
            add_generation_prompt=request.add_generation_prompt,
            continue_final_message=request.continue_final_message,
            chat_template_kwargs=request.chat_template_kwargs,
        )
    )
