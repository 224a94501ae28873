"""The OpenAI endpoints: from a checked request to a running generation and its answer."""

import asyncio
import time
from collections.abc import Coroutine, Sequence
from dataclasses import replace
from typing import Any

from fastapi import APIRouter, Request, Response

from glm_portable.errors import UsageError
from glm_portable.serve import conversation
from glm_portable.serve.body import read
from glm_portable.serve.chat_answer import ChatAnswer
from glm_portable.serve.completion_answer import CompletionAnswer, RawPrompt, Reported
from glm_portable.serve.errors import from_usage_error
from glm_portable.serve.exchange import note_error
from glm_portable.serve.generation import Job
from glm_portable.serve.logprobs import check_prompt_logprobs
from glm_portable.serve.openapi import describe
from glm_portable.serve.protocol import ChatRequest, CompletionRequest
from glm_portable.serve.sampling import for_each_choice, sampling_params
from glm_portable.serve.service import Service
from glm_portable.serve.streaming import (
    CLIENT_GONE,
    ClientGone,
    Streamable,
    encode,
    unless_disconnected,
)
from glm_portable.serve.structured.answers import constrain_text
from glm_portable.serve.usage import Usage
from glm_portable.tokenizer import Limit, Tokenizer


def router(service: Service) -> APIRouter:
    """The endpoints under /v1."""
    routes = APIRouter(prefix="/v1")
    started = int(time.time())

    @routes.post("/chat/completions", **describe(ChatRequest, "Answer a conversation."))
    async def chat_completions(request: Request) -> Response:
        service.admit()
        body = await read(request, ChatRequest, service.settings.max_body_bytes)
        return await respond(request, start_chat(service, body), body.stream)

    @routes.post("/completions", **describe(CompletionRequest, "Continue a text."))
    async def completions(request: Request) -> Response:
        service.admit()
        body = await read(request, CompletionRequest, service.settings.max_body_bytes)
        return await respond(request, start_completion(service, body), body.stream)

    def card(name: str) -> dict[str, Any]:
        facts = {"object": "model", "created": started, "owned_by": "glm-portable"}
        return {"id": name, **facts, "max_model_len": service.max_model_len}

    @routes.get("/models", **describe(None, "The names of the served model."))
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [card(n) for n in service.settings.served_model_names]}

    # A name may hold slashes (zai-org/GLM-4.5).
    @routes.get("/models/{name:path}", **describe(None, "One served model."))
    async def model(name: str) -> dict[str, Any]:
        return card(service.model(name))

    return routes


async def respond(
    request: Request, starting: Coroutine[Any, Any, Streamable], stream: bool | None
) -> Response:
    """Start an answer and send it; if the client goes away, whatever runs for it ends."""
    try:
        answer = await unless_disconnected(request.receive, starting)
        if stream:
            return answer.stream(answer)
        async with answer.generation:
            whole = await unless_disconnected(request.receive, answer.whole())
    except ClientGone:
        note_error(CLIENT_GONE)
        return Response(status_code=499)  # nobody gets it
    # Off the loop: the log probabilities of a long prompt are many megabytes.
    return Response(await asyncio.to_thread(encode, whole), media_type="application/json")


async def start_chat(service: Service, request: ChatRequest) -> ChatAnswer:
    """Render the conversation and start its choices. Raises ApiError."""
    return ChatAnswer(
        await conversation.start(service, request),
        service.tokenizer,
        logprobs=bool(request.logprobs),
        prompt_logprobs=request.prompt_logprobs,
        include_usage=request.include_usage,
        continuous_usage=request.continuous_usage,
    )


async def start_completion(service: Service, request: CompletionRequest) -> CompletionAnswer:
    """Encode the prompts and start their choices: n of the first, n of the second, ..."""
    model = service.model(request.model)
    prompts = await asyncio.to_thread(_encode, service, request.prompt)
    grammar = await constrain_text(service.grammars, request.format)
    params = replace(sampling_params(request, service.settings.sampling), grammar=grammar)
    choices = [(prompt, p) for prompt in prompts for p in for_each_choice(params, request.n or 1)]
    tokens = sum(len(prompt.ids) for prompt, _ in choices)
    check_prompt_logprobs(tokens, request.prompt_logprob_count)
    reported = Reported(
        logprobs=request.logprobs,
        prompt_logprobs=request.prompt_logprobs,
        echo=bool(request.echo),
        answer=request.max_tokens != 0,
    )
    jobs = [Job(prompt.ids, params, **request.scheduling) for prompt, params in choices]
    return CompletionAnswer(
        service.generate(jobs),
        [prompt for prompt, _ in choices],
        reported,
        service.tokenizer,
        model=model,
        usage=Usage([prompt.ids for prompt in prompts]),
        include_usage=request.include_usage,
        continuous_usage=request.continuous_usage,
    )


def _encode(service: Service, prompts: Sequence[str | list[int]]) -> list[RawPrompt]:
    """Raw prompts: control tokens in them are meant, unlike those in chat messages."""
    try:
        return [_raw_prompt(service.tokenizer, p, service.prompt_limit) for p in prompts]
    except UsageError as error:
        raise from_usage_error(error) from None


def _raw_prompt(tokenizer: Tokenizer, prompt: str | list[int], limit: Limit) -> RawPrompt:
    if isinstance(prompt, str):
        return RawPrompt(tokenizer.encode_template(prompt, limit=limit), prompt)
    limit.check(len(prompt))
    return RawPrompt(prompt, tokenizer.text_of(prompt))
