"""Connections with time limits: a slow client, or one that is gone, holds nothing for long."""

import asyncio
import logging
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from glm_portable.serve.settings import ServerSettings
from glm_portable.serve.streaming import PIECES

log = logging.getLogger(__name__)


def limited_protocol(settings: ServerSettings) -> type[H11Protocol]:
    """uvicorn's protocol, which alone waits forever, with time limits for slow clients.

    A connection is closed when a request's headers, or after them its body, take too long, and cut
    when an answer waits in its buffer and none of it is taken for too long. h11 itself limits the
    headers to 64 KiB; uvicorn stops an answer that has 64 KiB waiting. For what is streamed it
    offers `PIECES`.
    """
    limits: dict[object, float] = {
        h11.IDLE: settings.header_timeout_s,
        h11.SEND_BODY: settings.body_timeout_s,
    }

    class LimitedProtocol(H11Protocol):
        _timer: asyncio.TimerHandle | None = None
        _timed: object = None
        _write_timer: asyncio.TimerHandle | None = None

        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            self._application, self.app = self.app, self._offer_pieces

        async def _offer_pieces(self, scope: Any, receive: Any, send: Any) -> None:
            if scope["http_version"] == "1.1":  # with an older client the body is not in chunks
                scope["extensions"] = {PIECES: self}
            await self._application(scope, receive, send)

        @property
        def writable(self) -> bool:
            return not self.flow.write_paused

        async def drain(self) -> None:
            if self.flow.write_paused and not self.cycle.disconnected:
                await self.flow.drain()

        def write_piece(self, data: bytes) -> None:
            """As uvicorn and h11 send it, whose states a piece of a chunked body leaves alone."""
            cycle = self.cycle
            if not cycle.disconnected:
                assert data and cycle.response_started and not cycle.response_complete
                self.transport.write(b"%x\r\n%b\r\n" % (len(data), data))

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._watch()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self._watch()

        def connection_lost(self, exc: Exception | None) -> None:
            self._clear()
            self._clear_write()
            super().connection_lost(exc)

        def on_response_complete(self) -> None:
            super().on_response_complete()
            if self.conn.their_state is h11.IDLE and not self.conn.trailing_data[0]:
                self._clear()  # nothing has begun: the keep-alive timer watches it
            else:
                self._watch()

        def pause_writing(self) -> None:
            super().pause_writing()
            self._watch_write()

        def resume_writing(self) -> None:
            super().resume_writing()
            self._clear_write()

        def timeout_keep_alive_handler(self) -> None:
            super().timeout_keep_alive_handler()
            self._watch_write()  # closing waits for what is in the buffer

        def _watch_write(self) -> None:
            self._clear_write()
            waiting = self.transport.get_write_buffer_size()
            if waiting:
                self._write_timer = self.loop.call_later(
                    settings.write_timeout_s, self._check_write, waiting
                )

        def _check_write(self, waiting: int) -> None:
            if self.transport.get_write_buffer_size() < waiting:
                return self._watch_write()  # slow, but reading
            log.info("cutting a connection: its client does not read the answer")
            self.transport.abort()

        def _clear_write(self) -> None:
            if self._write_timer is not None:
                self._write_timer.cancel()
            self._write_timer = None

        def _watch(self) -> None:
            state = self.conn.their_state
            if state is not self._timed:
                self._clear()
                if state in limits:
                    self._timed = state
                    self._timer = self.loop.call_later(limits[state], self._expire)

        def _clear(self) -> None:
            if self._timer is not None:
                self._timer.cancel()
            self._timer = self._timed = None

        def _expire(self) -> None:
            log.info("closing a connection: its client sends a request too slowly")
            self.transport.close()

    return LimitedProtocol
