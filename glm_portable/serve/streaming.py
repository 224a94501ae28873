"""Answers over HTTP: JSON, server-sent events, and noticing that the client has gone."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from typing import Any, Protocol, TypeVar

from fastapi import Response
from pydantic_core import to_json
from starlette.types import Receive, Scope, Send

from glm_portable.serve.errors import ApiError, internal_error
from glm_portable.serve.exchange import note_error
from glm_portable.serve.generation import Generation

T = TypeVar("T")
Chunk = dict[str, Any] | bytes
"""What an event says, or the whole event."""
Write = Callable[[bytes], Awaitable[None]]
log = logging.getLogger(__name__)

_MOST_TOGETHER = 256
"""Events, so that a client which reads slowly makes the stream wait before it is all in memory."""

# Some clients split a stream's lines with str.splitlines, which breaks at these as well.
_LINE_BREAKS = [(chr(c).encode(), b"\\u%04x" % c) for c in (0x85, 0x2028, 0x2029)]


WRITE_PIECE = "glm_portable.write_piece"
"""The ASGI extension that sends a piece of a body of unknown length: `await write_piece(data)`,
between the start of the answer and its last body message. What stands between the server and an
endpoint changes no pieces, but hands each of them on; that cost as much as making it.
"""

_PLACE = "\0text\0"
"""Stands for a text; found in no name or id of ours."""

CLIENT_GONE = "client_disconnected"
"""The code of an error that nobody gets, for the log and the metrics."""


class ClientGone(Exception):
    """The client disconnected; nobody reads an answer."""


def encode(content: Any) -> bytes:
    """Compact JSON on one line, as UTF-8."""
    line = to_json(content)
    if not line.isascii():
        for text, escaped in _LINE_BREAKS:
            line = line.replace(text, escaped)
    return line


def event(content: Any, name: str = "") -> bytes:
    """One server-sent event. OpenAI's older APIs give theirs no names."""
    named = f"event: {name}\n".encode() if name else b""
    return named + b"data: " + encode(content) + b"\n\n"


class TextEvent:
    """An event that is made again and again with another text: the rest is encoded once."""

    def __init__(self, content: Callable[[str], Any]) -> None:
        """content: what the event says, with the given text at one place."""
        self._before, self._after = event(content(_PLACE)).split(encode(_PLACE))

    def of(self, text: str) -> bytes:
        return self._before + encode(text) + self._after


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

    def chunks(self) -> AsyncIterator[Chunk]:
        """The answer piece by piece. Raises ApiError."""


def _writer(send: Send) -> Write:
    """For a server without the extension."""

    async def write(data: bytes) -> None:
        await send({"type": "http.response.body", "body": data, "more_body": True})

    return write


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

    def __init__(self, generation: Generation, chunks: AsyncIterator[Chunk]) -> None:
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._generation, self._chunks = generation, chunks

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self._generation:
            try:
                write = scope.get("extensions", {}).get(WRITE_PIECE) or _writer(send)
                await unless_disconnected(receive, self._send(send, write))
            except ClientGone:
                note_error(CLIENT_GONE)

    async def _send(self, send: Send, write: Write) -> None:
        """Events that came together go out together: a write costs more than making an event."""
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        ready: list[bytes] = []

        async def flush() -> None:
            if ready:
                body = b"".join(ready)
                ready.clear()
                await write(body)

        self._generation.before_waiting = flush
        try:
            async for chunk in self._chunks:
                ready.append(chunk if isinstance(chunk, bytes) else self.chunk(chunk))
                if len(ready) >= _MOST_TOGETHER:
                    await flush()
            ready.append(self.end)
        except ApiError as error:
            note_error(error.code)
            ready.append(self.error(error))
        except Exception:
            log.exception("a stream failed")
            note_error("internal_error")
            ready.append(self.error(internal_error()))
        await send({"type": "http.response.body", "body": b"".join(ready), "more_body": False})
