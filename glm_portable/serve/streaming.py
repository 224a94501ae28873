"""Answers over HTTP: JSON, server-sent events, and noticing that the client has gone."""

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterable
from functools import partial
from typing import Any, Protocol, TypeVar

import msgspec
from fastapi import Response
from pydantic_core import to_json
from starlette.types import Receive, Scope, Send

from glm_portable.engine.types import Delta
from glm_portable.serve.errors import ApiError, internal_error
from glm_portable.serve.exchange import note_error
from glm_portable.serve.generation import Generation

T = TypeVar("T")
Chunk = dict[str, Any] | bytes
"""What an event says, or the whole event."""
log = logging.getLogger(__name__)

_MOST_TOGETHER = 256
"""Events, so that a client which reads slowly makes the stream wait before it is all in memory."""

# Some clients split a stream's lines with str.splitlines, which breaks at these as well.
_LINE_BREAKS = [(chr(c).encode(), b"\\u%04x" % c) for c in (0x85, 0x2028, 0x2029)]


PIECES = "glm_portable.pieces"
"""The ASGI extension that sends pieces of a body of unknown length (`Pieces`). What stands between
the server and an endpoint changes no pieces, but hands each of them on; that cost as much as making
it.
"""

_PLACE = "\0text\0"
"""Stands for a text; found in no name or id of ours."""

CLIENT_GONE = "client_disconnected"
"""The code of an error that nobody gets, for the log and the metrics."""


class ClientGone(Exception):
    """The client disconnected; nobody reads an answer."""


_encode_text: Callable[[str], bytes] = msgspec.json.Encoder().encode
"""In a third of the time that `to_json` takes for a few letters."""


def encode(content: Any) -> bytes:
    """Compact JSON on one line, as UTF-8."""
    line = _encode_text(content) if isinstance(content, str) else to_json(content)
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

    def __init__(self, content: Callable[[str], Any], name: str = "") -> None:
        """content: what the event says, with the given text at one place."""
        self._before, self._after = event(content(_PLACE), name).split(encode(_PLACE))

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


class Pieces(Protocol):
    """Sends pieces of a body, between the start of the answer and its last body message."""

    @property
    def writable(self) -> bool:
        """Whether little enough waits for the client."""

    async def drain(self) -> None:
        """Wait until it is writable, or the client has gone."""

    def write_piece(self, data: bytes) -> None:
        """Send a piece, without waiting."""


class Streamable(Protocol):
    """An answer under way, of any API; read once, in chunks or as a whole."""

    generation: Generation

    @property
    def stream(self) -> "type[EventStream]":
        """How its chunks are sent."""

    async def whole(self) -> dict[str, Any]:
        """The answer as one object, when it is complete. Raises ApiError."""

    def opening(self) -> Iterable[Chunk]:
        """What comes before the first token."""

    def take(self, index: int, delta: Delta) -> Iterable[Chunk]:
        """What comes of a choice's next delta."""

    def ending(self) -> Iterable[Chunk]:
        """What comes after the last choice has ended."""


class EventStream(Response):
    """Sends an answer as server-sent events until it ends, fails, or the client goes away.

    A stream that ends well ends in `end`. One that fails ends in an error object without it:
    clients take a stream that merely stops for a complete answer. Other APIs override what events
    look like.

    A delta that comes while nothing else is to be done, as most do, is sent at once, if the server
    can (`PIECES`): waking the stream for it costs more than all else that is done for a token.
    """

    media_type = "text/event-stream"
    end = b"data: [DONE]\n\n"

    def chunk(self, chunk: dict[str, Any]) -> bytes:
        return event(chunk)

    def error(self, error: ApiError) -> bytes:
        return event(error.body())

    def __init__(self, answer: Streamable) -> None:
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._answer, self._generation = answer, answer.generation
        self._ready: list[bytes] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self._generation:
            try:
                pieces = scope.get("extensions", {}).get(PIECES)
                await unless_disconnected(receive, self._send(send, pieces))
            except ClientGone:
                note_error(CLIENT_GONE)

    async def _send(self, send: Send, pieces: Pieces | None) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        flush = self._generation.before_waiting = partial(self._flush, send, pieces)
        if pieces is not None:
            self._generation.take_now = partial(self._take_now, pieces)
        try:
            self._ready += self._encoded(self._answer.opening())
            while await self._generation.wait():
                for index, delta in self._generation.arrived():
                    if delta.prompt_logprobs:  # of up to a whole window
                        self._ready += await asyncio.to_thread(self._take, index, delta)
                    else:
                        self._ready += self._take(index, delta)
                    if len(self._ready) >= _MOST_TOGETHER:
                        await flush()
            self._ready += [*self._encoded(self._answer.ending()), self.end]
        except ApiError as error:
            note_error(error.code)
            self._ready.append(self.error(error))
        except Exception:
            log.exception("a stream failed")
            note_error("internal_error")
            self._ready.append(self.error(internal_error()))
        body = b"".join(self._ready)
        await send({"type": "http.response.body", "body": body, "more_body": False})

    def _take(self, index: int, delta: Delta) -> list[bytes]:
        return self._encoded(self._answer.take(index, delta))

    def _encoded(self, chunks: Iterable[Chunk]) -> list[bytes]:
        return [chunk if isinstance(chunk, bytes) else self.chunk(chunk) for chunk in chunks]

    async def _flush(self, send: Send, pieces: Pieces | None) -> None:
        """Events that came together go out together: a write costs more than making an event."""
        body = b"".join(self._ready)
        self._ready.clear()
        if not body:
            return
        if pieces is None:
            await send({"type": "http.response.body", "body": body, "more_body": True})
        else:
            await pieces.drain()
            pieces.write_piece(body)

    def _take_now(self, pieces: Pieces, index: int, delta: Delta) -> bool:
        """While the stream waits, with nothing ready."""
        if not pieces.writable:
            return False
        events = self._take(index, delta)
        if events:
            pieces.write_piece(b"".join(events))
        return True
