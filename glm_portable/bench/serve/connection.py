"""HTTP connections that read thousands of small pieces a second, and note when each one came.

httpx takes several times the processor time for a piece; at 256 streams the client would be what
is measured. h11 does the protocol.
"""

import asyncio
import ssl
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

import h11

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
    """One connection; one request at a time."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._http = h11.Connection(h11.CLIENT)
        self._transport: asyncio.Transport | None = None
        self._answer: asyncio.Future[None] | None = None
        self._on_data: OnData = lambda data, now: None
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
        self._on_data, self.status, self.text = on_data, 0, b""
        length = {"content-length": str(len(body))}
        request = h11.Request(
            method="POST", target=path, headers=list({**headers, **length}.items())
        )
        sent = [self._http.send(event) for event in (request, h11.Data(body), h11.EndOfMessage())]
        self._transport.write(b"".join(piece or b"" for piece in sent))
        try:
            await self._answer
        except BaseException:
            self.close()
            raise
        if self._http.our_state is h11.DONE and self._http.their_state is h11.DONE:
            self._http.start_next_cycle()
        else:
            self.close()

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        now = self._clock()
        self._read(data, now)

    def connection_lost(self, exc: Exception | None) -> None:
        if exc is None:
            self._read(b"", self._clock())  # an end of file may be the end of the answer
        self._end(Broken(f"the connection broke ({exc})"))
        if self._transport is not None:
            self._transport.close()

    def _read(self, data: bytes, now: float) -> None:
        try:
            self._http.receive_data(data)
            while self._answer is not None:
                event = self._http.next_event()
                if isinstance(event, h11.Response):
                    self.status = event.status_code
                elif isinstance(event, h11.Data) and self.status == 200:
                    self._on_data(bytes(event.data), now)
                elif isinstance(event, h11.Data):
                    self.text += event.data
                elif isinstance(event, h11.EndOfMessage):
                    self._end(None)
                elif not isinstance(event, h11.InformationalResponse):
                    return  # it needs more data, or the connection is closed
        except h11.RemoteProtocolError as error:
            if data:
                self._end(Broken(f"the answer is no HTTP ({error})"))
            else:
                when = "in the middle of" if self.status else "before"
                self._end(Broken(f"the server closed the connection {when} its answer"))

    def _end(self, error: Broken | None) -> None:
        answer, self._answer = self._answer, None
        if answer is None or answer.done():
            return
        if error is None:
            answer.set_result(None)
        else:
            answer.set_exception(error)


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
