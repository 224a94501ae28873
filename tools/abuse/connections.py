"""Connections that are slow, broken off, too many, or do not speak HTTP/1.1 properly."""

import asyncio
import json
import socket
import struct
from collections.abc import Awaitable, Iterable
from contextlib import AsyncExitStack, suppress
from typing import Any

from tools.abuse.target import CHAT, PATIENCE_S, QUESTION, VALID, Target, request_head

ANSWERED = range(200, 201)
REFUSED = range(400, 500)
REFUSED_OR_CLOSED = range(0, 500)
ENDLESS = QUESTION | {"max_tokens": 1500, "ignore_eos": True}
SLOW = 50
"""Slow connections at once."""


def request(body: Any, path: str = CHAT) -> bytes:
    data = json.dumps(body).encode()
    return request_head(path, len(data)) + data


async def too_large(target: Target, share: int) -> None:
    """More than any body limit, announced and not."""
    for path in target.endpoints:
        await target.raw(request_head(path, 10**12), f"{path}: a terabyte, announced", REFUSED)
        await _endless_chunks(target, path)


async def _endless_chunks(target: Target, path: str) -> None:
    """Chunks until the server has had enough: it must say so before it has 256 MiB."""
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    piece = b"10000\r\n" + b" " * 2**16 + b"\r\n"
    async with target.connection() as (reader, writer):
        writer.write(f"{head}Transfer-Encoding: chunked\r\n\r\n".encode())
        answer = asyncio.create_task(reader.readline())
        with suppress(ConnectionError):
            for _ in range(2**28 // 2**16):
                writer.write(piece)
                await writer.drain()
                if answer.done():
                    break
        line = b""
        with suppress(ConnectionError, TimeoutError):
            line = await asyncio.wait_for(answer, PATIENCE_S)
        status = int(line.split()[1]) if line.startswith(b"HTTP/") else 0
        target.note(status, f"{path}: endless chunks", REFUSED if line else range(1))


async def odd_http(target: Target, share: int) -> None:
    """What is no proper HTTP/1.1 is refused or the connection closed; the rest of it is 4xx."""
    body = json.dumps(VALID[CHAT]).encode()
    start = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n".encode()
    both = b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
    twice = b"Content-Length: %d\r\nContent-Length: 5\r\n\r\n" % len(body) + body
    for what, data in {
        "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        "noise": bytes(range(256)) * 16,
        "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 500,
        "one header of a megabyte": start + b"X-A: " + b"a" * 2**20 + b"\r\n\r\n",
        "10,000 headers": start + b"".join(b"X-%d: a\r\n" % i for i in range(10_000)) + b"\r\n",
        "a path of a megabyte": b"GET /" + b"a" * 2**20 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
        "length and chunks": start + both,
        "two lengths": start + twice,
        "a negative length": start + b"Content-Length: -5\r\n\r\n" + body,
        "a length in words": start + b"Content-Length: five\r\n\r\n" + body,
        "chunks of no size": start + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n" + body,
        "an unknown coding": start + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        "no host": b"POST / HTTP/1.1\r\n\r\n",
        "a folded header": start + b" X: a\r\n\r\n",
    }.items():
        await target.raw(data, what, REFUSED_OR_CLOSED)
    for path in (
        "//",
        "/v1/../v1/models",
        "/v1/%2e%2e/",
        "/%00",
        "/v1/models/..%2f..",
        "/*",
        "/?a=%ff",
    ):
        for method in ("GET", "PUT", "DELETE", "TRACE", "OPTIONS", "BREW"):
            data = f"{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode()
            await target.raw(data, f"{method} {path}", REFUSED_OR_CLOSED)
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""):
        headers = {"content-type": kind}
        for path in target.endpoints:
            await target.post(path, VALID[path], f"{path} as {kind}", REFUSED, headers=headers)


async def slow_writers(target: Target, share: int) -> None:
    """Heads and bodies that come one byte at a time: the others are answered meanwhile."""
    whole = request(QUESTION)
    await _meanwhile(target, [whole[:20]] * (max(1, SLOW // share)), whole[20:40])
    await _meanwhile(target, [whole[:-20]] * (max(1, SLOW // share)), whole[-20:-1])


async def slow_readers(target: Target, share: int) -> None:
    """Streams that nobody reads: the others are answered meanwhile."""
    await _meanwhile(target, [request(ENDLESS | {"stream": True})] * (max(1, SLOW // share)), b"")


async def _meanwhile(target: Target, openings: Iterable[bytes], drops: bytes) -> None:
    """Open connections, and ask as usual while they hold on to theirs."""
    async with AsyncExitStack() as stack:
        held = [await stack.enter_async_context(target.connection()) for _ in openings]
        for (_, writer), data in zip(held, openings, strict=True):
            writer.write(data)
        for i in range(len(drops)):
            for _, writer in held:
                with suppress(ConnectionError):
                    writer.write(drops[i : i + 1])
            if i % 10 == 0:
                await target.post(CHAT, VALID[CHAT], "asked meanwhile", ANSWERED)
        await target.post(CHAT, QUESTION, "asked meanwhile", ANSWERED)


async def disconnects(target: Target, share: int) -> None:
    """500 clients that leave: while streamed to, while waiting, in their body, by FIN and RST."""
    kinds = (
        (request(ENDLESS | {"stream": True}), True),
        (request(ENDLESS), False),
        (request(ENDLESS)[:-5], False),
        (request(ENDLESS)[:30], False),
    )
    for batch in range(max(1, 10 // share)):
        leaving: list[Awaitable[None]] = []
        for i in range(50):
            data, reads = kinds[i % len(kinds)]
            leaving.append(_leave(target, data, reads, reset=(batch + i // len(kinds)) % 2 == 0))
        await asyncio.gather(*leaving)


async def _leave(target: Target, data: bytes, reads: bool, reset: bool) -> None:
    async with target.connection() as (reader, writer):
        writer.write(data)
        await writer.drain()
        if reads:  # until the answer has begun
            with suppress(ConnectionError, TimeoutError):
                await asyncio.wait_for(reader.read(100), PATIENCE_S)
        if reset:
            connection: socket.socket = writer.get_extra_info("socket")
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()


async def two_hundred_at_once(target: Target, share: int) -> None:
    """Each is answered, or told to come back."""

    async def ask() -> None:
        answer = await target.post(CHAT, VALID[CHAT] | {"stream": True}, "at once")
        if answer is None:
            return
        if answer.status_code == 200 and not answer.text.endswith("data: [DONE]\n\n"):
            target.findings.append("200 at once: a stream ended early")
        if answer.status_code == 429 and "retry-after" not in answer.headers:
            target.findings.append("200 at once: a 429 does not say when to come back")

    await asyncio.gather(*(ask() for _ in range(200)))
