"""The server process: binding, and an orderly end."""

import asyncio
import logging
import signal
import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import FrameType

import uvicorn

from glm_portable.errors import UsageError
from glm_portable.serve.app import create_app
from glm_portable.serve.connections import limited_protocol
from glm_portable.serve.service import Service
from glm_portable.serve.settings import ServerSettings

log = logging.getLogger(__name__)

WORKERS = 2
"""Threads that parse, render and tokenise, which the tokenizer lets run beside each other. The
allocator keeps what each of them has freed until it is asked for it (`memory.py`).
"""

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


def listen(sock: socket.socket, settings: ServerSettings) -> None:
    """Accept connections from now on. Raises UsageError if another program does so already."""
    try:
        sock.listen(2048)
    except OSError as error:
        sock.close()
        raise _cannot_bind(settings, error) from None


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
    listen(sock, service.settings)
    try:
        server.run(sockets=[sock])
    finally:
        if service.tracing is not None:
            service.tracing.close()
    return 1 if server.cut_off else 0


class Server(uvicorn.Server):
    """uvicorn, with a drain that keeps answering.

    /health gets 503 from its start, new requests once `drain_delay_s` is over.
    """

    def __init__(self, service: Service, on_ready: Callable[[str], None]) -> None:
        settings = service.settings
        config = uvicorn.Config(
            create_app(service),
            http=limited_protocol(settings),
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_keep_alive=settings.keep_alive_s,
            timeout_graceful_shutdown=_FLUSH_S,
            ssl_certfile=settings.ssl_certfile,
            ssl_keyfile=settings.ssl_keyfile,
        )
        super().__init__(config)
        self._service, self._on_ready = service, on_ready
        self._deadline = float("inf")
        self.cut_off = False

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        workers = ThreadPoolExecutor(WORKERS, thread_name_prefix="request")
        asyncio.get_running_loop().set_default_executor(workers)
        remote = self._service.remote
        if remote is not None:
            remote.on_end = self.drain
            await remote.connect()
        await super().startup(sockets)
        host, port = (sockets or [])[0].getsockname()[:2]
        scheme = "https" if self.config.is_ssl else "http"
        self._on_ready(
            f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"
        )

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal drains, the second ends at once. Ctrl-C waits for no router."""
        if self._service.draining:
            self.force_exit = self.should_exit = True
        self.drain(self._service.settings.drain_delay_s if sig == signal.SIGTERM else 0.0)

    def drain(self, delay_s: float = 0.0) -> None:
        """Take no new requests after `delay_s`, and exit when the running ones are done.

        Thread-safe. A later call can only bring the end forward.
        """
        refuse_from = time.monotonic() + delay_s
        if refuse_from < self._service.refuse_from:
            self._service.refuse_from = refuse_from
            self._deadline = refuse_from + self._service.settings.drain_grace_s
            # A signal comes in the middle of any request's work.
            extra = {"request_id": ""}
            log.info("draining: %d requests are running", len(self._service.running), extra=extra)

    async def on_tick(self, counter: int) -> bool:
        """Called ten times a second."""
        now = time.monotonic()
        late = now > self._deadline
        idle = now >= self._service.refuse_from and not self.server_state.tasks
        return await super().on_tick(counter) or late or idle

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self.cut_off = bool(self.server_state.tasks)
        self._service.abort()
        if self.force_exit:
            for connection in list(self.server_state.connections):
                connection.transport.abort()
        await super().shutdown(sockets)
        if self._service.remote is not None:
            await self._service.remote.close()
