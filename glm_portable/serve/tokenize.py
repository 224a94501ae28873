"""Tokens of texts and texts of tokens, under vLLM's paths: /tokenize, /detokenize, /tokenizer_info.

A text is read as /v1/completions reads a prompt and a conversation as /v1/chat/completions does,
so what is counted here is what a generation would use. GLM's tokenizer adds no tokens of its own.
"""

import asyncio
from collections.abc import Callable
from typing import Annotated, Any

from fastapi import APIRouter, Request, Response
from pydantic import ConfigDict, Field, model_validator

from glm_portable.errors import UsageError
from glm_portable.serve.body import read
from glm_portable.serve.described import NULL, STRING, any_of
from glm_portable.serve.errors import bad_request, from_usage_error
from glm_portable.serve.fields import Messages, TemplateOptions, TokenId
from glm_portable.serve.openapi import describe
from glm_portable.serve.protocol import Strict
from glm_portable.serve.service import COUNTED, Service
from glm_portable.serve.streaming import encode
from glm_portable.serve.tools import Tools

_EITHER = any_of(
    {"required": ["prompt"], "properties": {"prompt": STRING, "messages": NULL}},
    {"required": ["messages"], "properties": {"prompt": NULL, "messages": {"type": "array"}}},
)


class TokenizeRequest(Strict):
    """POST /tokenize: a prompt, or messages as for a chat."""

    model_config = ConfigDict(json_schema_extra=_EITHER)

    model: str | None = None
    prompt: str | None = None
    messages: Messages | None = None
    tools: Tools = None
    add_generation_prompt: bool | None = None
    chat_template_kwargs: TemplateOptions | None = None
    add_special_tokens: bool | None = None
    return_token_strs: bool | None = None

    @model_validator(mode="after")
    def _check_together(self) -> "TokenizeRequest":
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("should have either prompt or messages")
        return self


class DetokenizeRequest(Strict):
    """POST /detokenize"""

    model: str | None = None
    tokens: Annotated[list[TokenId], Field(max_length=COUNTED)]


def router(service: Service, prefix: str) -> APIRouter:
    """The three endpoints; evaluation tools look for them at the root, others under /v1."""
    routes = APIRouter(prefix=prefix)
    limit = service.settings.max_body_bytes

    @routes.post("/tokenize", **describe(TokenizeRequest, "The tokens of a text.", streams=False))
    async def tokenize(request: Request) -> Response:
        body = await read(request, TokenizeRequest, limit)
        return await _off_the_loop(lambda: _tokenize(service, body))

    @routes.post("/detokenize", **describe(DetokenizeRequest, "The text of tokens.", streams=False))
    async def detokenize(request: Request) -> Response:
        body = await read(request, DetokenizeRequest, limit)
        return await _off_the_loop(lambda: _detokenize(service, body))

    @routes.get("/tokenizer_info", **describe(None, "The tokenizer's marks and chat template."))
    async def tokenizer_info() -> dict[str, Any]:
        return _info(service)

    return routes


async def _off_the_loop(work: Callable[[], dict[str, Any]]) -> Response:
    """A megabyte takes about a second."""
    content = await asyncio.to_thread(lambda: encode(work()))
    return Response(content, media_type="application/json")


def _tokenize(service: Service, request: TokenizeRequest) -> dict[str, Any]:
    service.model(request.model)
    try:
        ids = _ids(service, request)
    except UsageError as error:
        raise from_usage_error(error) from None
    strings = [service.tokenizer.token_text(i) for i in ids] if request.return_token_strs else None
    return {
        "count": len(ids),
        "max_model_len": service.max_model_len,
        "tokens": ids,
        "token_strs": strings,
    }


def _ids(service: Service, request: TokenizeRequest) -> list[int]:
    if request.prompt is not None:
        return service.tokenizer.encode_template(request.prompt, limit=service.counted_limit)
    options = dict(request.chat_template_kwargs or {})
    if request.add_generation_prompt is not None:
        options["add_generation_prompt"] = request.add_generation_prompt
    tools = list(request.tools or ())
    prompt = service.chat.encode(
        request.messages, tools, chat_template_kwargs=options, limit=service.counted_limit
    )
    return prompt.token_ids


def _detokenize(service: Service, request: DetokenizeRequest) -> dict[str, Any]:
    service.model(request.model)
    vocab_size = service.tokenizer.vocab_size
    if request.tokens and max(request.tokens) >= vocab_size:
        raise bad_request(
            f"tokens holds the id {max(request.tokens)}, but the vocabulary has the ids 0 to "
            f"{vocab_size - 1}; tokenize with this model's tokenizer.",
            "tokens",
            "invalid_value",
        )
    return {"prompt": service.tokenizer.text_of(request.tokens)}


def _info(service: Service) -> dict[str, Any]:
    """GLM has no beginning-of-sequence token, and pads with the first of those that end a text."""
    tokenizer = service.tokenizer
    ends = [tokenizer.token_text(token_id) for token_id in tokenizer.eos_token_id]
    end = ends[0] if ends else None
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "vocab_size": tokenizer.vocab_size,
        "model_max_length": service.max_model_len,
        "eos_token": end,
        "bos_token": None,
        "pad_token": end,
        "unk_token": None,
        "additional_special_tokens": list(tokenizer.control_tokens),
        "chat_template": service.chat.source,
    }
