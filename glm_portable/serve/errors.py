"""Errors as OpenAI error objects: {"error": {"message", "type", "param", "code"}}."""

import json
import re
from collections.abc import Mapping
from math import ceil
from typing import Any

from fastapi.responses import JSONResponse
from pydantic import ValidationError
from starlette.types import Receive, Scope, Send

from glm_portable.errors import UsageError
from glm_portable.serve.exchange import note_error

CONTEXT_PHRASE = "maximum context length"
"""Clients tell a prompt that is too long from other errors by these words of the engine."""

_PLACE = re.compile(
    r"((?:messages|tools|chat_template_kwargs)[\w.\[\]]*|max_tokens|logit_bias|stop_token_ids)"
)


class ApiError(Exception):
    """An answer other than success: an HTTP status and one sentence for the client."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.headers = dict(headers or {})

    def body(self) -> dict[str, Any]:
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        fields = {"message": self.message, "type": kind, "param": self.param, "code": self.code}
        return {"error": fields}

    def response(self) -> JSONResponse:
        return JSONResponse(self.body(), self.status, headers=self.headers)


async def refuse(error: ApiError, scope: Scope, receive: Receive, send: Send) -> None:
    """Send this error as the whole answer, outside of any endpoint."""
    note_error(error.code)
    await error.response()(scope, receive, send)


def bad_request(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    return ApiError(400, message, param=param, code=code)


def unavailable(message: str) -> ApiError:
    """Come back soon: clients and routers retry a 503 after Retry-After."""
    return ApiError(503, message, code="unavailable", headers={"Retry-After": "1"})


def unhealthy(message: str) -> ApiError:
    """The server should get no requests until somebody has looked at it."""
    return ApiError(503, message, code="unhealthy")


def too_many(message: str, code: str, wait_s: float) -> ApiError:
    """Of one client, or of all of them together; clients send it again after Retry-After."""
    return ApiError(429, message, code=code, headers={"Retry-After": str(max(1, ceil(wait_s)))})


def timed_out(seconds: float) -> ApiError:
    """Sent again it would take as long; openai-python, which retries a 504, heeds the header."""
    return ApiError(
        504,
        f"The answer took more than {seconds:g} s, this server's limit; ask for fewer tokens.",
        code="request_timeout",
        headers={"x-should-retry": "false"},
    )


def internal_error() -> ApiError:
    return ApiError(500, "The server failed; its log has the reason.", code="internal_error")


def from_usage_error(error: UsageError) -> ApiError:
    """What the template or the engine refuses, by its own sentence."""
    message = str(error)
    code = "context_length_exceeded" if CONTEXT_PHRASE in message else "invalid_value"
    place = _PLACE.match(message)
    return bad_request(message, place.group(1) if place else None, code)


def from_validation(error: ValidationError) -> ApiError:
    """The first thing that is wrong with a request body, in one sentence with its place."""
    first = error.errors(include_url=False)[0]
    if first["type"] == "json_invalid":
        reason = str(first["msg"]).removeprefix("Invalid JSON: ")
        return bad_request(f"The body is not valid JSON: {reason}.", code="invalid_json")
    param = path(first["loc"])
    problem = str(first["msg"]).removeprefix("Value error, ").rstrip(".")
    problem = problem.replace("Input should", "should").replace("Field required", "is required")
    shown = "" if first["type"] in ("missing", "value_error") else f", not {brief(first['input'])}"
    space = "" if problem.startswith("[") else " "  # some problems say which item it is
    return bad_request(f"{param or 'The body'}{space}{problem}{shown}.", param, "invalid_value")


def path(location: tuple[int | str, ...]) -> str | None:
    """("messages", 0, "role") -> messages[0].role"""
    steps = (f"[{step}]" if isinstance(step, int) else f".{step}" for step in location)
    return "".join(steps).lstrip(".") or None


def brief(value: Any) -> str:
    """A value as JSON, cut to what fits into a sentence."""
    if isinstance(value, dict | list):
        return "an object" if isinstance(value, dict) else "an array"
    text = json.dumps(value, ensure_ascii=True)
    return text if len(text) <= 60 else f"{text[:57]}..."
