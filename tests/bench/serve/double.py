"""A server that answers each connection with bytes that a test wrote, in the pieces it wrote."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from glm_portable.bench.serve.connection import Address

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
END = b"0\r\n\r\n"


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


@dataclass
class Double:
    """pieces: what is sent for each request. gate: if there is one, each answer waits for it."""

    pieces: Sequence[bytes]
    close: bool = False
    gate: asyncio.Event | None = None
    connections: int = 0
    requests: list[bytes] = field(default_factory=list)
    running: int = 0
    most: int = 0
    arrived: asyncio.Condition = field(default_factory=asyncio.Condition)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().partition(b"content-length:")[2].split()[0])
                self.requests.append(head + await reader.readexactly(length))
                await self._answer(writer)
                if self.close:
                    return
        except (asyncio.IncompleteReadError, ConnectionError):
            return  # the client has gone
        finally:
            writer.close()

    async def _answer(self, writer: asyncio.StreamWriter) -> None:
        async with self.arrived:
            self.running += 1
            self.most = max(self.most, self.running)
            self.arrived.notify_all()
        if self.gate is not None:
            await self.gate.wait()
        self.running -= 1
        for piece in self.pieces:
            writer.write(piece)
            await writer.drain()


@asynccontextmanager
async def serving(double: Double) -> AsyncIterator[Address]:
    server = await asyncio.start_server(double.serve, "127.0.0.1", 0)
    async with server:
        yield Address("127.0.0.1", server.sockets[0].getsockname()[1])
