"""The endpoints for operators and their machines: health, probes, version, metrics."""

from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import FastAPI, Request, Response

from glm_portable.serve.errors import bad_request
from glm_portable.serve.metrics import CONTENT_TYPE, Metrics
from glm_portable.serve.openapi import describe
from glm_portable.serve.self_test import BOUND
from glm_portable.serve.service import Service

_CHECK = {
    "name": "check",
    "in": "query",
    "description": "numerics: also compare a text's numbers, and the weights, with the first time.",
    "schema": {"enum": ["numerics"]},
}


def add_operations(app: FastAPI, service: Service, metrics: Metrics, version: str) -> None:
    """Add them to the application; none of them needs an API key."""

    async def health(request: Request) -> dict[str, Any]:
        check = request.query_params.get("check")
        if check is None:
            return await ready()
        if check != "numerics":
            raise bad_request("check can only be numerics.", "check", "invalid_value")
        service.check_draining()  # and no more: a good run ends what a bad one began
        outcome = await service.self_test.run(service.engine)
        service.check_health()
        return {"status": "ok", "numerics": {"drift": outcome.drift, "bound": BOUND}}

    async def ready() -> dict[str, str]:
        service.check_health()
        return {"status": "ok"}

    async def live() -> dict[str, str]:
        return {"status": "ok"}

    async def show_version() -> dict[str, str]:
        return {"version": version}

    async def show_metrics() -> Response:
        if service.remote is not None:
            await service.remote.observe()
        return Response(metrics.text(), media_type=CONTENT_TYPE)

    able = "200 when the server takes requests, 503 otherwise."
    _add(app, "/health", health, able, openapi_extra={"parameters": [_CHECK]})
    _add(app, "/ready", ready, able)
    _add(app, "/ping", ready, able)
    _add(app, "/live", live, "200 as long as the process answers.")
    _add(app, "/version", show_version, "The version of glm-portable.")
    _add(app, "/metrics", show_metrics, "Metrics for Prometheus.", response_class=Response)


def _add(
    app: FastAPI,
    path: str,
    answer: Callable[..., Awaitable[Any]],
    summary: str,
    **options: Any,
) -> None:
    described = describe(None, summary, operation=True)
    app.add_api_route(path, answer, methods=["GET"], **described, **options)
