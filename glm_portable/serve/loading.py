"""Answers while the model is loaded: alive, and not ready yet."""

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn
from starlette.types import Receive, Scope, Send

from glm_portable.serve.anthropic.errors import MessagesErrors
from glm_portable.serve.connections import limited_protocol
from glm_portable.serve.errors import ApiError
from glm_portable.serve.middleware import Exchanges
from glm_portable.serve.server import listen
from glm_portable.serve.settings import ServerSettings

RETRY_AFTER_S = 5


@contextmanager
def answering(sock: socket.socket, settings: ServerSettings) -> Iterator[None]:
    """Until the block ends, /live is 200 and everything else 503, on a thread of its own.

    The socket stays open afterwards: whoever connects at that moment waits for the server.
    """
    listen(sock, settings)
    config = uvicorn.Config(
        MessagesErrors(Exchanges(_answer, _unnoted, _unnoted, closing=lambda: False)),
        http=limited_protocol(settings),
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=1,
        ssl_certfile=settings.ssl_certfile,
        ssl_keyfile=settings.ssl_keyfile,
    )
    server = uvicorn.Server(config)
    ours = sock.dup()  # uvicorn closes what it was given
    thread = threading.Thread(target=server.run, args=[[ours]], name="loading", daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.should_exit = True
        thread.join()


def _unnoted(*_: object) -> None:
    """There are no metrics yet."""


async def _answer(scope: Scope, receive: Receive, send: Send) -> None:
    status, body, headers = 200, {"status": "ok"}, []
    if scope["path"] != "/live":
        error = ApiError(503, "The model is being loaded; send it again later.", code="loading")
        status, body = error.status, error.body()
        headers = [(b"retry-after", b"%d" % RETRY_AFTER_S)]
    data = json.dumps(body).encode()
    headers += [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(data))]
    headers += [(b"connection", b"close")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": data})
