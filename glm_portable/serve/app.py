"""The HTTP application: endpoints, middleware, and errors as OpenAI error objects."""

from importlib import metadata

from fastapi import FastAPI, Request, Response
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.types import Scope

from glm_portable.serve import openai, tokenize
from glm_portable.serve.anthropic import routes as anthropic
from glm_portable.serve.anthropic.errors import MessagesErrors
from glm_portable.serve.anthropic.request import CountTokensRequest, MessagesRequest
from glm_portable.serve.anthropic.schema import ERROR as MESSAGES_ERROR
from glm_portable.serve.errors import ApiError
from glm_portable.serve.exchange import Exchange, note_error
from glm_portable.serve.logs import log_access
from glm_portable.serve.memory import Trimming, trimmer
from glm_portable.serve.metrics import Metrics
from glm_portable.serve.middleware import ApiKeys, Exchanges, HeadRequests
from glm_portable.serve.openapi import DocumentedApi
from glm_portable.serve.operations import add_operations
from glm_portable.serve.page import add_page
from glm_portable.serve.protocol import ChatRequest, CompletionRequest
from glm_portable.serve.rate import RateLimit
from glm_portable.serve.request_metrics import RequestMetrics
from glm_portable.serve.responses import routes as responses
from glm_portable.serve.responses.request import ResponsesRequest
from glm_portable.serve.service import Service
from glm_portable.serve.tokenize import DetokenizeRequest, TokenizeRequest

_MESSAGES = {
    404: "There is nothing at {path}; see /openapi.json.",
    405: "{path} does not take {method}; see /openapi.json.",
}

_BODIES = (
    *(ChatRequest, CompletionRequest, TokenizeRequest, DetokenizeRequest),
    *(ResponsesRequest, MessagesRequest, CountTokensRequest),
)


def create_app(service: Service) -> FastAPI:
    """The application that serves `service`."""
    version = metadata.version("glm-portable")
    # The documentation pages would load scripts from another host.
    app = DocumentedApi(
        _BODIES,
        {"MessagesError": MESSAGES_ERROR},
        title="glm-portable",
        version=version,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    metrics = Metrics(
        lambda: service.engine.stats(),
        service.settings.served_model_names[0],
        service.observed or RequestMetrics(service.max_model_len),
        service.cache_config,
        service.engine_pid,
    )
    app.include_router(openai.router(service))
    app.include_router(responses.router(service))
    app.include_router(anthropic.router(service))
    for prefix in ("", "/v1"):
        app.include_router(tokenize.router(service, prefix))
    add_operations(app, service, metrics, version)
    add_page(app)
    app.add_exception_handler(ApiError, _api_error)
    app.add_exception_handler(HTTPException, _http_error)
    _add_middleware(app, service, metrics)
    return app


def _add_middleware(app: FastAPI, service: Service, metrics: Metrics) -> None:
    """The one added last is the outermost."""
    settings = service.settings
    if settings.rate_limit is not None:
        app.add_middleware(RateLimit, per_minute=settings.rate_limit)
    if settings.api_keys:
        app.add_middleware(ApiKeys, keys=settings.api_keys)
    if settings.allowed_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.allowed_origins,
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
            expose_headers=["x-request-id", "request-id", "retry-after"],
        )
    app.add_middleware(HeadRequests)
    trimming = Trimming(trimmer())

    def on_end(exchange: Exchange, scope: Scope) -> None:
        route = getattr(scope.get("route"), "path", "other")
        metrics.count(exchange, route)
        log_access(exchange)
        trimming.after(exchange)
        if service.tracing is not None and exchange.choices:
            service.tracing.record(exchange, Headers(scope=scope), route)

    app.add_middleware(
        Exchanges,
        on_start=metrics.in_progress.inc,
        on_end=on_end,
        closing=lambda: service.draining,
    )
    app.add_middleware(MessagesErrors)


async def _api_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    note_error(error.code)
    return error.response()


async def _http_error(request: Request, error: Exception) -> Response:
    """Starlette's own errors: unknown paths and methods."""
    assert isinstance(error, HTTPException)
    message = _MESSAGES.get(error.status_code, str(error.detail))
    message = message.format(path=request.url.path[:200], method=request.method[:20])
    code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code)
    note_error(code)
    return ApiError(error.status_code, message, code=code, headers=error.headers).response()
