"""Anthropic's endpoints, over the same conversation as a chat's."""

import asyncio

from fastapi import APIRouter, Request, Response

from glm_portable.serve import conversation
from glm_portable.serve.anthropic.answer import MessageAnswer
from glm_portable.serve.anthropic.errors import PATH
from glm_portable.serve.anthropic.request import CountTokensRequest, MessagesRequest
from glm_portable.serve.body import read
from glm_portable.serve.openai import respond
from glm_portable.serve.openapi import describe
from glm_portable.serve.service import Service

_ERROR = "MessagesError"


def router(service: Service) -> APIRouter:
    """The endpoints under /v1/messages."""
    routes = APIRouter(prefix=PATH)
    limit = service.settings.max_body_bytes

    answer = "Answer a conversation (Anthropic)."

    @routes.post("", **describe(MessagesRequest, answer, error=_ERROR))
    async def messages(request: Request) -> Response:
        service.admit()
        body = await read(request, MessagesRequest, limit)
        return await respond(request, start_message(service, body), body.stream)

    count = "How many tokens a conversation has (Anthropic)."

    @routes.post(
        "/count_tokens", **describe(CountTokensRequest, count, streams=False, error=_ERROR)
    )
    async def count_tokens(request: Request) -> dict[str, int]:
        body = await read(request, CountTokensRequest, limit)
        service.model(body.model)
        return {"input_tokens": await asyncio.to_thread(_count, service, body)}

    return routes


def _count(service: Service, request: CountTokensRequest) -> int:
    return len(conversation.render(service, request.chat(), service.counted_limit).token_ids)


async def start_message(service: Service, request: MessagesRequest) -> MessageAnswer:
    """Start the answer. Raises ApiError."""
    chat = await asyncio.to_thread(request.chat)
    started = await conversation.start(service, chat)
    return MessageAnswer(started, cache_read=request.caches)
