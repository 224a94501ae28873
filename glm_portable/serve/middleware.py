"""What happens to every request before and after its endpoint: an id, the key, a last resort."""

import hmac
import logging
import re
import secrets
from collections.abc import Callable, Sequence

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from glm_portable.serve import page
from glm_portable.serve.errors import ApiError, internal_error, refuse
from glm_portable.serve.exchange import Exchange, enter

log = logging.getLogger(__name__)

OPEN_PATHS = page.PATHS | {
    *("/health", "/live", "/ready", "/ping", "/version", "/metrics", "/openapi.json")
}
"""Need no API key: they tell nothing of what users ask."""

_REQUEST_ID = re.compile(r"[\w.:/+=@-]{1,128}", re.ASCII)


class Exchanges:
    """Makes an Exchange of every request and hands it to `on_end` when the answer is over.

    Puts x-request-id on every answer, and turns what nobody caught into a 500 with it. When
    `closing` says so, answers end their connections: a balancer of connections sends the next one
    to another server.
    """

    def __init__(
        self,
        app: ASGIApp,
        on_start: Callable[[], None],
        on_end: Callable[[Exchange, Scope], None],
        closing: Callable[[], bool],
    ) -> None:
        self._app, self._on_start, self._on_end = app, on_start, on_end
        self._closing = closing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        given = Headers(scope=scope).get("x-request-id", "")
        request_id = given if _REQUEST_ID.fullmatch(given) else secrets.token_hex(16)
        # As it was sent: decoded, a path could hold a line break and forge a line of the log.
        path = scope.get("raw_path", b"").decode("ascii", "backslashreplace")
        exchange = Exchange(request_id, scope["method"][:20], path[:200])
        enter(exchange)

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                exchange.status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["x-request-id"] = request_id
                # Of others the body may be on its way: closing would lose them the answer.
                if exchange.choices and self._closing():
                    headers["connection"] = "close"
            await send(message)

        self._on_start()
        try:
            await self._app(scope, receive, send_with_id)
        except Exception:
            log.exception("request failed")
            if exchange.status:  # too late for another: cut the connection, or it would look done
                raise
            await refuse(internal_error(), scope, receive, send_with_id)
        finally:
            self._on_end(exchange, scope)


class HeadRequests:
    """Answers HEAD as GET; the server itself leaves the body out."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "HEAD":
            return await self._app(scope, receive, send)
        as_get = {**scope, "method": "GET"}
        try:
            await self._app(as_get, receive, send)
        finally:
            scope["route"] = as_get.get("route")  # for whom the exchange is told to


class ApiKeys:
    """Asks for an API key everywhere but on the open paths.

    As `Authorization: Bearer <key>`, or as x-api-key, which Anthropic's clients send.
    """

    def __init__(self, app: ASGIApp, keys: Sequence[str]) -> None:
        self._app = app
        self._keys = [key.encode() for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] not in OPEN_PATHS:
            scope["api_key"] = self._known(Headers(scope=scope))
            if scope["api_key"] is None:
                return await refuse(_wrong_key(), scope, receive, send)
        await self._app(scope, receive, send)

    def _known(self, headers: Headers) -> str | None:
        """A name for the key that was sent, None for none of ours."""
        scheme, _, key = headers.get("authorization", "").partition(" ")
        given = key.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")
        sent = given.encode("latin-1")
        # All keys are compared, each in constant time: the time tells nothing about any of them.
        matches = [hmac.compare_digest(sent, known) for known in self._keys]
        return f"key {matches.index(True)}" if any(matches) else None


def _wrong_key() -> ApiError:
    return ApiError(
        401,
        "The API key is missing or wrong; send it as Authorization: Bearer <key>.",
        code="invalid_api_key",
        headers={"WWW-Authenticate": "Bearer"},
    )
