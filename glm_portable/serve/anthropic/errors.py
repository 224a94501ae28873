"""Errors as Anthropic's clients expect them: {"type": "error", "error": {"type", "message"}}."""

import json
from typing import Any

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

PATH = "/v1/messages"

_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
    529: "overloaded_error",
}


def error_body(status: int, message: str, request_id: str | None = None) -> dict[str, Any]:
    kind = "invalid_request_error" if status < 500 else "api_error"
    error = {"type": _TYPES.get(status, kind), "message": message}
    return {"type": "error", "error": error, "request_id": request_id}


class MessagesErrors:
    """Rewrites the errors of the paths under /v1/messages, whoever answered with them.

    The key, the rate or the path is refused before an endpoint is reached; so this stands outside
    of all of them. What is not JSON is for no client: the answer to a browser's preflight, and the
    one to a client that has gone.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not scope["path"].startswith(PATH):
            return await self._app(scope, receive, send)
        held: list[Message] = []

        async def rewrite(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.setdefault("request-id", headers.get("x-request-id", ""))
                json_body = headers.get("content-type") == "application/json"
                if message["status"] >= 400 and json_body:
                    return held.append(message)
            elif held:
                start = held.pop()
                headers = MutableHeaders(scope=start)
                message = {**message, "body": _rewritten(start, message["body"], headers)}
                headers["content-length"] = str(len(message["body"]))
                await send(start)
            await send(message)

        await self._app(scope, receive, rewrite)


def _rewritten(start: Message, body: bytes, headers: MutableHeaders) -> bytes:
    message = json.loads(body)["error"]["message"]
    return json.dumps(error_body(start["status"], message, headers["request-id"])).encode()
