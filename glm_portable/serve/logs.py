"""The server's log: a line of text or of JSON per record, with the id of the request it is about.

Prompts and answers are never logged.
"""

import json
import logging
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Literal

from glm_portable.serve.exchange import Exchange, current

LogFormat = Literal["text", "json"]

access = logging.getLogger("glm_portable.access")

_QUIET_PATHS = frozenset({"/health", "/live", "/ready", "/ping", "/metrics"})
"""Polled by machines: their good answers are logged at debug level only."""


def configure(log_format: LogFormat, level: str, log_requests: bool = True) -> None:
    """Send the log of this process to stderr, uvicorn's included.

    level: debug, info, warning or error. log_requests: a line for every request.
    """
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines() if log_format == "json" else TextLines())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    access.disabled = not log_requests
    # A line for every file looked for on a hub, and for every step of starting and stopping.
    for talkative in ("httpx", "httpcore", "uvicorn.error"):
        logging.getLogger(talkative).setLevel(max(logging.WARNING, logging.root.level))


class TextLines(logging.Formatter):
    """Time, level, logger and message, then the request's id in brackets."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:
        request_id = _request_id(record)
        return super().formatMessage(record) + (f" [{request_id}]" if request_id else "")


class JsonLines(logging.Formatter):
    """One object a line; what a record carries as `fields` is beside the usual keys."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if request_id := _request_id(record):
            line["request_id"] = request_id
        line |= getattr(record, "fields", {})
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=True, default=str)


def _request_id(record: logging.LogRecord) -> str:
    """What the record says, "" for none of them, or else that of the code that logs."""
    exchange = current()
    return getattr(record, "request_id", exchange.request_id if exchange else "")


def log_access(exchange: Exchange) -> None:
    """The line of a request that is over."""
    level = logging.DEBUG if _is_poll(exchange) else logging.INFO
    if access.isEnabledFor(level):
        fields = _fields(exchange)
        words = (f"{name}={value}" for name, value in fields.items() if name not in _SHOWN)
        access.log(
            level,
            "%s %s %d %.3fs %s",
            exchange.method,
            exchange.path,
            exchange.status,
            exchange.seconds,
            " ".join(words),
            extra={"request_id": exchange.request_id, "fields": fields},
        )


_SHOWN = frozenset({"method", "path", "status", "duration_s"})


def _is_poll(exchange: Exchange) -> bool:
    return exchange.path in _QUIET_PATHS and exchange.status == 200


def _fields(exchange: Exchange) -> Mapping[str, Any]:
    fields: dict[str, Any] = {
        "method": exchange.method,
        "path": exchange.path,
        "status": exchange.status,
        "duration_s": round(exchange.seconds, 6),
    }
    if exchange.choices:
        fields |= {
            "prompt_tokens": exchange.prompt_tokens,
            "completion_tokens": exchange.completion_tokens,
            "finish_reason": ",".join(exchange.finish_reasons) or "none",
        }
    return fields | ({"error": exchange.error} if exchange.error else {})
