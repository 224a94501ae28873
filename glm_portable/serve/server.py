"""The server process: binding, time limits for slow clients, and an orderly end."""

import asyncio
import logging
import socket
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from glm_portable.errors import UsageError
from glm_portable.serve.app import create_app
from glm_portable.serve.service import Service
from glm_portable.serve.settings import ServerSettings

log = logging.getLogger(__name__)

_FLUSH_S = 5
"""After the drain, for clients that read their last bytes slowly."""


def bind(settings: ServerSettings) -> socket.socket:
    """A socket at the server's address; port 0 takes a free one. Raises UsageError if it is taken.

    Called before the model is loaded, it finds a taken port before the minutes that takes.
    """
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((settings.host, settings.port))
    except OSError as error:
        sock.close()
        raise _cannot_bind(settings, error) from None
    return sock


def _cannot_bind(settings: ServerSettings, error: OSError) -> UsageError:
    return UsageError(
        f"cannot listen on {settings.host} port {settings.port} ({error.strerror}): "
        "stop what uses the port, or choose another with --port."
    )


def run(
    service: Service,
    sock: socket.socket | None = None,
    on_ready: Callable[[str], None] = lambda url: None,
) -> int:
    """Serve until SIGTERM or SIGINT, then finish what runs; returns the exit code.

    on_ready gets the server's URL once it answers. 0: every request was finished; 1: some were
    cut off, by a second signal or because `drain_grace_s` was over.
    """
    server = Server(service, on_ready)
    sock = sock or bind(service.settings)
    try:
        sock.listen(2048)
    except OSError as error:
        sock.close()
        raise _cannot_bind(service.settings, error) from None
    server.run(sockets=[sock])
    return 1 if server.cut_off else 0


class Server(uvicorn.Server):
    """uvicorn, with a drain that keeps answering: /health and new requests get 503 meanwhile."""

    def __init__(self, service: Service, on_ready: Callable[[str], None]) -> None:
        settings = service.settings
        config = uvicorn.Config(
            create_app(service),
            http=limited_protocol(settings.header_timeout_s, settings.body_timeout_s),
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_keep_alive=settings.keep_alive_s,
            timeout_graceful_shutdown=_FLUSH_S,
        )
        super().__init__(config)
        self._service, self._on_ready = service, on_ready
        self._deadline = float("inf")
        self.cut_off = False

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        host, port = (sockets or [])[0].getsockname()[:2]
        self._on_ready(f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}")

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal drains, the second ends at once."""
        if self._service.draining:
            self.force_exit = self.should_exit = True
        self.drain()

    def drain(self) -> None:
        """Take no new requests, and exit when the running ones are done. Thread-safe."""
        if not self._service.draining:
            self._service.draining = True
            self._deadline = time.monotonic() + self._service.settings.drain_grace_s
            log.info("draining: %d requests are running", len(self._service.running))

    async def on_tick(self, counter: int) -> bool:
        """Called ten times a second."""
        late = time.monotonic() > self._deadline
        idle = self._service.draining and not self.server_state.tasks
        return await super().on_tick(counter) or late or idle

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self.cut_off = bool(self.server_state.tasks)
        self._service.abort()
        if self.force_exit:
            for connection in list(self.server_state.connections):
                connection.transport.abort()
        await super().shutdown(sockets)


def limited_protocol(header_timeout_s: float, body_timeout_s: float) -> type[H11Protocol]:
    """uvicorn's protocol, which alone waits forever, with time limits for sending a request.

    A connection is closed when a request's headers, or after them its body, take longer than this.
    h11 itself limits the headers to 64 KiB.
    """
    limits: dict[object, float] = {h11.IDLE: header_timeout_s, h11.SEND_BODY: body_timeout_s}

    class LimitedProtocol(H11Protocol):
        _timer: asyncio.TimerHandle | None = None
        _timed: object = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._watch()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self._watch()

        def connection_lost(self, exc: Exception | None) -> None:
            self._clear()
            super().connection_lost(exc)

        def on_response_complete(self) -> None:
            super().on_response_complete()
            if self.conn.their_state is h11.IDLE and not self.conn.trailing_data[0]:
                self._clear()  # nothing has begun: the keep-alive timer watches it
            else:
                self._watch()

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
