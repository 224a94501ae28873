"""HTTP connections that read thousands of small pieces a second, and note when each one came.

httpx takes several times the processor time for a piece; at 256 streams the client would be what
is measured. So httptools reads the answers; h11 writes the requests.
"""

import asyncio
import ssl
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

import h11
import httptools

from glm_portable.errors import UsageError

OnData = Callable[[bytes, float], None]
"""A piece of the body of a 200 answer, and the clock when it came."""


@dataclass(frozen=True)
class Address:
    """Where a server is. `prefix`: of every path, without the slash at its end."""

    host: str
    port: int
    tls: bool = False
    prefix: str = ""

    @classmethod
    def parse(cls, url: str) -> "Address":
        """Raises UsageError for what is no address."""
        try:
            parts = urlsplit(url)
            port = parts.port or (443 if parts.scheme == "https" else 80)
        except ValueError as error:
            raise UsageError(f"--base-url {url!r} is no address ({error}).") from None
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UsageError(f"--base-url {url!r} is no address: write it as http://HOST:PORT.")
        return cls(parts.hostname, port, parts.scheme == "https", parts.path.rstrip("/"))

    @property
    def authority(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"

    @property
    def url(self) -> str:
        return f"http{'s' if self.tls else ''}://{self.authority}{self.prefix}"


class Broken(Exception):
    """No proper answer, in a few words."""


class Connection(asyncio.Protocol):
    """One connection; one request at a time.

    The methods from on_header to on_message_complete are what httptools calls.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._transport: asyncio.Transport | None = None
        self._answer: asyncio.Future[None] | None = None
        self._on_data: OnData = lambda data, now: None
        self._begin()

    def _begin(self) -> None:
        """Expect an answer."""
        self._parser = httptools.HttpResponseParser(self)
        self._now = 0.0
        self._until_close, self._keep_alive = True, False
        self.status, self.text = 0, b""

    @property
    def reusable(self) -> bool:
        """Whether another request may go over it."""
        return self._transport is not None and not self._transport.is_closing()

    async def post(
        self, path: str, headers: Mapping[str, str], body: bytes, on_data: OnData
    ) -> None:
        """Send, and return when the answer is over. Sets status, and text if that is not 200.

        Raises Broken.
        """
        assert self._transport is not None
        self._answer = asyncio.get_running_loop().create_future()
        self._on_data = on_data
        self._begin()
        self._transport.write(_request(path, headers, body))
        try:
            await self._answer
        except BaseException:
            self.close()
            raise
        if not self._keep_alive:
            self.close()

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._now = self._clock()
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._end(Broken(f"the answer is no HTTP ({error})"))

    def connection_lost(self, exc: Exception | None) -> None:
        if exc is not None:
            self._end(Broken(f"the connection broke ({exc})"))
        elif self.status and self._until_close:
            self._end(None)  # its length was not told, so this is its end
        else:
            when = "in the middle of" if self.status else "before"
            self._end(Broken(f"the server closed the connection {when} its answer"))
        if self._transport is not None:
            self._transport.close()

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() in (b"content-length", b"transfer-encoding"):
            self._until_close = False

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        if status >= 200:  # what comes before is information
            self.status = status

    def on_body(self, data: bytes) -> None:
        if self.status == 200:
            self._on_data(data, self._now)
        else:
            self.text += data

    def on_message_complete(self) -> None:
        if self.status:
            self._keep_alive = self._parser.should_keep_alive()
            self._end(None)

    def _end(self, error: Broken | None) -> None:
        answer, self._answer = self._answer, None
        if answer is None or answer.done():
            return
        if error is None:
            answer.set_result(None)
        else:
            answer.set_exception(error)


def _request(path: str, headers: Mapping[str, str], body: bytes) -> bytes:
    every = [*headers.items(), ("content-length", str(len(body)))]
    head = h11.Request(method="POST", target=path, headers=every)
    http = h11.Connection(h11.CLIENT)
    return b"".join(http.send(event) or b"" for event in (head, h11.Data(body), h11.EndOfMessage()))


class Pool:
    """Connections to one server, kept for the next request."""

    def __init__(
        self,
        address: Address,
        *,
        verify: bool = True,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.address, self.clock = address, clock
        self._tls = ssl.create_default_context() if address.tls else None
        if self._tls is not None and not verify:
            self._tls.check_hostname, self._tls.verify_mode = False, ssl.CERT_NONE
        self._idle: list[Connection] = []

    async def post(
        self, path: str, headers: Mapping[str, str], body: bytes, on_data: OnData
    ) -> tuple[int, str]:
        """(status, text of an answer other than 200). Raises Broken."""
        connection = await self._connection()
        host = {"host": self.address.authority, "content-type": "application/json"}
        await connection.post(self.address.prefix + path, host | dict(headers), body, on_data)
        if connection.reusable:
            self._idle.append(connection)
        return connection.status, connection.text.decode(errors="replace")

    def close(self) -> None:
        for connection in self._idle:
            connection.close()

    async def _connection(self) -> Connection:
        while self._idle:
            connection = self._idle.pop()
            if connection.reusable:
                return connection
        loop = asyncio.get_running_loop()
        try:
            _, made = await loop.create_connection(
                lambda: Connection(self.clock), self.address.host, self.address.port, ssl=self._tls
            )
        except OSError as error:
            raise Broken(f"{self.address.url} does not answer ({error})") from None
        return made
