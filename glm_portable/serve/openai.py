"""The OpenAI endpoints: from a checked request to a running generation and its answer."""

import asyncio
import time
from collections.abc import Coroutine, Sequence
from typing import Any

from fastapi import APIRouter, Request, Response

from glm_portable.errors import UsageError
from glm_portable.serve.answer import Answer
from glm_portable.serve.body import read
from glm_portable.serve.chat import Prompt
from glm_portable.serve.chat_answer import ChatAnswer, ChatChoice
from glm_portable.serve.completion_answer import CompletionAnswer
from glm_portable.serve.errors import from_usage_error
from glm_portable.serve.forced_call import choose
from glm_portable.serve.generation import Job
from glm_portable.serve.openapi import describe
from glm_portable.serve.parsing import Parser
from glm_portable.serve.protocol import ChatRequest, CompletionRequest
from glm_portable.serve.sampling import for_each_choice, sampling_params
from glm_portable.serve.service import Service
from glm_portable.serve.streaming import ClientGone, EventStream, encode, unless_disconnected
from glm_portable.serve.tools import openings
from glm_portable.serve.usage import Usage


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
    request: Request, starting: Coroutine[Any, Any, Answer], stream: bool | None
) -> Response:
    """Start an answer and send it; if the client goes away, whatever runs for it ends."""
    try:
        answer = await unless_disconnected(request.receive, starting)
        if stream:
            return EventStream(answer.generation, answer.chunks())
        async with answer.generation:
            whole = await unless_disconnected(request.receive, answer.whole())
    except ClientGone:
        return Response(status_code=499)  # nobody gets it
    return Response(encode(whole), media_type="application/json")


async def start_chat(service: Service, request: ChatRequest) -> ChatAnswer:
    """Render the conversation and start its choices. Raises ApiError."""
    model = service.model(request.model)
    params = sampling_params(request, service.settings.sampling)
    forced = openings(request.choice, service.call_format, request.tools or ())
    prompt = await asyncio.to_thread(_render, service, request, bool(forced))
    opening = await choose(service, prompt.token_ids, params, forced, **request.scheduling)
    ids, prefix = prompt.token_ids + opening, service.tokenizer.decode(opening)
    choices = list(for_each_choice(params, request.n or 1))
    return ChatAnswer(
        service.generate([Job(ids, params, **request.scheduling) for params in choices]),
        [_choice(request, prompt, prefix) for _ in choices],
        service.tokenizer,
        logprobs=bool(request.logprobs),
        model=model,
        usage=Usage([ids], len(choices)),
        include_usage=request.include_usage,
        continuous_usage=request.continuous_usage,
    )


def _render(service: Service, request: ChatRequest, forced: bool) -> Prompt:
    tools = None if request.choice.mode == "none" else list(request.tools or ())
    options = request.template_options
    if forced:  # the call begins at once
        options = {name: on for name, on in options.items() if name != "thinking"}
        options["enable_thinking"] = False
    try:
        return service.chat.encode(request.messages, tools, chat_template_kwargs=options)
    except UsageError as error:
        raise from_usage_error(error) from None


def _choice(request: ChatRequest, prompt: Prompt, prefix: str) -> ChatChoice:
    tools = request.tools if request.choice.mode != "none" else None
    return ChatChoice(
        Parser(tools, starts_in_reasoning=prompt.starts_in_reasoning, thinking=prompt.thinking),
        prefix=prefix,
        single_call=request.choice.mode == "named" or request.parallel_tool_calls is False,
    )


async def start_completion(service: Service, request: CompletionRequest) -> CompletionAnswer:
    """Encode the prompts and start their choices: n of the first, n of the second, ..."""
    model = service.model(request.model)
    prompts = await asyncio.to_thread(_encode, service, request.prompt)
    params = sampling_params(request, service.settings.sampling)
    jobs = [
        Job(ids, choice, **request.scheduling)
        for ids in prompts
        for choice in for_each_choice(params, request.n or 1)
    ]
    return CompletionAnswer(
        service.generate(jobs),
        len(jobs),
        None if request.logprobs is None else service.tokenizer,
        model=model,
        usage=Usage(prompts, request.n or 1),
        include_usage=request.include_usage,
        continuous_usage=request.continuous_usage,
    )


def _encode(service: Service, prompts: Sequence[str | list[int]]) -> list[list[int]]:
    """Raw prompts: control tokens in them are meant, unlike those in chat messages."""
    try:
        return [
            service.tokenizer.encode_template(prompt) if isinstance(prompt, str) else prompt
            for prompt in prompts
        ]
    except UsageError as error:
        raise from_usage_error(error) from None
