"""What happens to every request before and after its endpoint: an id, the key, a last resort."""

import hmac
import logging
import re
import secrets
from collections.abc import Sequence

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from glm_portable.serve.errors import ApiError, internal_error

log = logging.getLogger(__name__)

OPEN_PATHS = frozenset({"/health", "/version", "/openapi.json"})
"""Need no API key: they tell nothing about the model or its users."""

_REQUEST_ID = re.compile(r"[\w.:/+=@-]{1,128}", re.ASCII)


class RequestIds:
    """Puts x-request-id on every answer, and turns what nobody caught into a 500 with it."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        given = Headers(scope=scope).get("x-request-id", "")
        request_id = given if _REQUEST_ID.fullmatch(given) else secrets.token_hex(16)
        started = False

        async def send_with_id(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                MutableHeaders(scope=message)["x-request-id"] = request_id
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        except Exception:
            log.exception("request %s failed", request_id)
            if started:  # too late for a status: cut the connection, so that it does not look done
                raise
            await internal_error().response()(scope, receive, send_with_id)


class HeadRequests:
    """Answers HEAD as GET; the server itself leaves the body out."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] == "HEAD":
            scope = {**scope, "method": "GET"}
        await self._app(scope, receive, send)


class ApiKeys:
    """Asks for `Authorization: Bearer <key>` everywhere but on the open paths."""

    def __init__(self, app: ASGIApp, keys: Sequence[str]) -> None:
        self._app = app
        self._keys = [key.encode() for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        protected = scope["type"] == "http" and scope["path"] not in OPEN_PATHS
        if protected and not self._knows(Headers(scope=scope).get("authorization", "")):
            refusal = ApiError(
                401,
                "The API key is missing or wrong; send it as Authorization: Bearer <key>.",
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )
            return await refusal.response()(scope, receive, send)
        await self._app(scope, receive, send)

    def _knows(self, header: str) -> bool:
        scheme, _, key = header.partition(" ")
        given = key.strip().encode("latin-1")
        # All keys are compared, each in constant time: the time tells nothing about any of them.
        matches = [hmac.compare_digest(given, known) for known in self._keys]
        return scheme.lower() == "bearer" and any(matches)
