"""The Responses API, over the same conversation as a chat's. Nothing is stored."""

import asyncio

from fastapi import APIRouter, Request, Response

from glm_portable.serve import conversation
from glm_portable.serve.body import read
from glm_portable.serve.errors import ApiError
from glm_portable.serve.openai import respond
from glm_portable.serve.openapi import describe
from glm_portable.serve.responses.answer import ResponseAnswer
from glm_portable.serve.responses.request import ResponsesRequest
from glm_portable.serve.service import Service


def router(service: Service) -> APIRouter:
    """The endpoints under /v1/responses."""
    routes = APIRouter(prefix="/v1/responses")

    @routes.post("", **describe(ResponsesRequest, "Answer a conversation (Responses)."))
    async def responses(request: Request) -> Response:
        service.admit()
        body = await read(request, ResponsesRequest, service.settings.max_body_bytes)
        return await respond(request, start_response(service, body), body.stream)

    @routes.get("/{response_id}", **describe(None, "404: this server stores no responses."))
    @routes.delete("/{response_id}", **describe(None, "404: this server stores no responses."))
    async def stored(response_id: str) -> None:
        raise ApiError(
            404,
            f"There is no response {response_id[:80]!r}: this server stores none; send the whole "
            "conversation as input.",
            param="response_id",
            code="response_not_found",
        )

    return routes


async def start_response(service: Service, request: ResponsesRequest) -> ResponseAnswer:
    """Start the answer. Raises ApiError."""
    chat = await asyncio.to_thread(request.chat)
    started = await conversation.start(service, chat)
    return ResponseAnswer(started, request.shown())
