"""The description of the endpoints at /openapi.json."""

from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel

_REF = "#/components/schemas/{model}"
_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}
_EVENT = {
    "type": "object",
    "required": ["data"],
    "properties": {"event": {"type": "string"}, "data": {"type": "string"}},
}
_ALWAYS = {401: "Wrong or missing API key", 404: "Not found", 500: "The server failed"}
_OPERATION = {400: "Not such a check", 500: "The server failed", 503: "Loading, draining or failed"}
_WITH_BODY = {
    400: "The request is wrong; `param` says where",
    408: "The body did not arrive",
    413: "The body is too large",
    415: "The body is not JSON",
    429: "Too many requests, of this caller or waiting; see Retry-After",
    503: "Loading, draining or failed; see Retry-After",
    504: "The answer took longer than this server allows",
}


def describe(
    request: type[BaseModel] | None,
    summary: str,
    *,
    streams: bool = True,
    operation: bool = False,
    error: str = "Error",
) -> dict[str, Any]:
    """Keyword arguments for a FastAPI route: its request, its answers and its errors.

    operation: it is one for operators, which needs no key and may answer 503. error: the name of
    the errors' schema.
    """
    errors = _OPERATION if operation else _ALWAYS | (_WITH_BODY if request else {})
    found: dict[str, Any] = {
        "summary": summary,
        "responses": {status: _error_answer(text, error) for status, text in errors.items()},
    }
    if request is None:
        return found
    media: dict[str, Any] = {"application/json": {"schema": {"type": "object"}}}
    if streams:
        media["text/event-stream"] = {"schema": _EVENT}
    described = "The answer, or its events" if streams else "The answer"
    found["responses"][200] = {"description": described, "content": media}
    schema = {"$ref": _REF.format(model=request.__name__)}
    content = {"application/json": {"schema": schema}}
    found["openapi_extra"] = {"requestBody": {"required": True, "content": content}}
    return found


def _error_answer(text: str, name: str) -> dict[str, Any]:
    schema = {"$ref": _REF.format(model=name)}
    return {"description": text, "content": {"application/json": {"schema": schema}}}


class DocumentedApi(FastAPI):
    """FastAPI, with the schemas of the `bodies` that the endpoints read themselves.

    errors: schemas of errors by name, beside the usual one.
    """

    def __init__(
        self, bodies: Sequence[type[BaseModel]], errors: Mapping[str, Any], **options: Any
    ) -> None:
        super().__init__(**options)
        self._bodies, self._errors = bodies, {"Error": _ERROR, **errors}

    def openapi(self) -> dict[str, Any]:
        if self.openapi_schema is None:
            document = super().openapi()
            schemas = document.setdefault("components", {}).setdefault("schemas", {})
            for model in self._bodies:
                schema = model.model_json_schema(ref_template=_REF)
                for name, part in {**schema.pop("$defs", {}), model.__name__: schema}.items():
                    if schemas.setdefault(name, part) != part:
                        raise ValueError(f"two schemas of /openapi.json are called {name}")
            schemas |= self._errors
        return super().openapi()
