"""Reading a request's JSON body, within its limits."""

import asyncio
from typing import TypeVar

from fastapi import Request
from pydantic import BaseModel, ValidationError
from starlette.requests import ClientDisconnect

from glm_portable.serve.errors import ApiError, from_validation
from glm_portable.serve.exchange import current

M = TypeVar("M", bound=BaseModel)

_LARGE = 64 * 1024
"""Bytes from which a body is parsed off the event loop."""


async def read(request: Request, model: type[M], limit: int) -> M:
    """The body as `model`. Raises ApiError: 415 type, 413 size, 400 content."""
    _check_type(request.headers.get("content-type", ""))
    data = await _bytes(request, limit)
    try:
        if len(data) < _LARGE:
            return model.model_validate_json(data)
        return await asyncio.to_thread(model.model_validate_json, data)
    except ValidationError as error:
        raise from_validation(error) from None


def _check_type(content_type: str) -> None:
    """Only JSON: a web page can send other types to this server without asking (CSRF)."""
    kind = content_type.split(";")[0].strip().lower()
    if kind != "application/json":
        raise ApiError(415, "Send the body as JSON, with Content-Type: application/json.")


async def _bytes(request: Request, limit: int) -> bytes:
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > limit:
        raise _too_large(limit)
    data = bytearray()
    exchange = current()
    try:
        async for chunk in request.stream():
            data += chunk
            if exchange is not None:
                exchange.body_bytes = len(data)
            if len(data) > limit:
                raise _too_large(limit)
    except ClientDisconnect:
        raise ApiError(408, "The request did not arrive completely.") from None
    return bytes(data)


def _too_large(limit: int) -> ApiError:
    return ApiError(413, f"The body is larger than {limit} bytes, this server's limit.")
