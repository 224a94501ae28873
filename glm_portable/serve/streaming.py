"""Answers over HTTP: JSON, server-sent events, and noticing that the client has gone."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Coroutine
from typing import Any, Protocol, TypeVar

from fastapi import Response
from starlette.types import Receive, Scope, Send

from glm_portable.serve.errors import ApiError, internal_error
from glm_portable.serve.exchange import note_error
from glm_portable.serve.generation import Generation

T = TypeVar("T")
log = logging.getLogger(__name__)

_JSON = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))
_MOST_TOGETHER = 256
"""Events, so that a client which reads slowly makes the stream wait before it is all in memory."""

# Some clients split a stream's lines with str.splitlines, which breaks at these as well.
_LINE_BREAKS = {0x85: "\\u0085", 0x2028: "\\u2028", 0x2029: "\\u2029"}


CLIENT_GONE = "client_disconnected"
"""The code of an error that nobody gets, for the log and the metrics."""


class ClientGone(Exception):
    """The client disconnected; nobody reads an answer."""


def encode(content: Any) -> bytes:
    """Compact JSON on one line, as UTF-8."""
    text = _JSON.encode(content)
    return (text if text.isascii() else text.translate(_LINE_BREAKS)).encode()


def event(content: Any, name: str = "") -> bytes:
    """One server-sent event. OpenAI's older APIs give theirs no names."""
    named = f"event: {name}\n".encode() if name else b""
    return named + b"data: " + encode(content) + b"\n\n"


async def unless_disconnected(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, which is cancelled as soon as the client disconnects (ClientGone)."""
    watcher = asyncio.create_task(_disconnected(receive))
    worker = asyncio.create_task(work)
    try:
        await asyncio.wait({watcher, worker}, return_when=asyncio.FIRST_COMPLETED)
        if not worker.done():
            raise ClientGone
        return worker.result()
    finally:
        watcher.cancel()
        worker.cancel()
        await asyncio.gather(watcher, worker, return_exceptions=True)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class Streamable(Protocol):
    """An answer under way, of any API; read once, as chunks or as a whole."""

    generation: Generation

    @property
    def stream(self) -> "type[EventStream]":
        """How its chunks are sent."""

    async def whole(self) -> dict[str, Any]:
        """The answer as one object, when it is complete. Raises ApiError."""

    def chunks(self) -> AsyncIterator[dict[str, Any]]:
        """The answer piece by piece. Raises ApiError."""


class EventStream(Response):
    """Sends chunks as server-sent events until they end, fail, or the client goes away.

    A stream that ends well ends in `end`. One that fails ends in an error object without it:
    clients take a stream that merely stops for a complete answer. Other APIs override what events
    look like.
    """

    media_type = "text/event-stream"
    end = b"data: [DONE]\n\n"

    def chunk(self, chunk: dict[str, Any]) -> bytes:
        return event(chunk)

    def error(self, error: ApiError) -> bytes:
        return event(error.body())

    def __init__(self, generation: Generation, chunks: AsyncIterator[dict[str, Any]]) -> None:
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._generation, self._chunks = generation, chunks

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self._generation:
            try:
                await unless_disconnected(receive, self._send(send))
            except ClientGone:
                note_error(CLIENT_GONE)

    async def _send(self, send: Send) -> None:
        """Events that came together go out together: a write costs more than making an event."""
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        ready: list[bytes] = []

        async def flush(more: bool = True) -> None:
            if ready or not more:
                body = b"".join(ready)
                ready.clear()
                await send({"type": "http.response.body", "body": body, "more_body": more})

        self._generation.before_waiting = flush
        async for data in self._events():
            ready.append(data)
            if len(ready) >= _MOST_TOGETHER:
                await flush()
        await flush(more=False)

    async def _events(self) -> AsyncIterator[bytes]:
        try:
            async for chunk in self._chunks:
                yield self.chunk(chunk)
        except ApiError as error:
            note_error(error.code)
            yield self.error(error)
        except Exception:
            log.exception("a stream failed")
            note_error("internal_error")
            yield self.error(internal_error())
        else:
            yield self.end
