"""The HTTP application: endpoints, middleware, and errors as OpenAI error objects."""

from importlib import metadata

from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware

from glm_portable.serve import openai, tokenize
from glm_portable.serve.errors import ApiError
from glm_portable.serve.middleware import ApiKeys, HeadRequests, RequestIds
from glm_portable.serve.openapi import DocumentedApi
from glm_portable.serve.protocol import ChatRequest, CompletionRequest
from glm_portable.serve.service import Service
from glm_portable.serve.tokenize import DetokenizeRequest, TokenizeRequest

_MESSAGES = {
    404: "There is nothing at {path}; see /openapi.json.",
    405: "{path} does not take {method}; see /openapi.json.",
}

_BODIES = (ChatRequest, CompletionRequest, TokenizeRequest, DetokenizeRequest)


def create_app(service: Service) -> FastAPI:
    """The application that serves `service`."""
    version = metadata.version("glm-portable")
    # The documentation pages would load scripts from another host.
    app = DocumentedApi(
        _BODIES,
        title="glm-portable",
        version=version,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    app.include_router(openai.router(service))
    for prefix in ("", "/v1"):
        app.include_router(tokenize.router(service, prefix))
    _add_operations(app, service, version)
    app.add_exception_handler(ApiError, _api_error)
    app.add_exception_handler(HTTPException, _http_error)
    settings = service.settings
    if settings.api_keys:  # the one added last is the outermost
        app.add_middleware(ApiKeys, keys=settings.api_keys)
    if settings.allowed_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.allowed_origins,
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
            expose_headers=["x-request-id"],
        )
    app.add_middleware(HeadRequests)
    app.add_middleware(RequestIds)
    return app


def _add_operations(app: FastAPI, service: Service, version: str) -> None:
    @app.get("/health", summary="200 when the server takes requests, 503 otherwise.")
    async def health() -> dict[str, str]:
        service.check_health()
        return {"status": "ok"}

    @app.get("/version", summary="The version of glm-portable.")
    async def show_version() -> dict[str, str]:
        return {"version": version}


async def _api_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return error.response()


async def _http_error(request: Request, error: Exception) -> Response:
    """Starlette's own errors: unknown paths and methods."""
    assert isinstance(error, HTTPException)
    message = _MESSAGES.get(error.status_code, str(error.detail))
    message = message.format(path=request.url.path[:200], method=request.method[:20])
    code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code)
    return ApiError(error.status_code, message, code=code, headers=error.headers).response()
