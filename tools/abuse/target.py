"""The server under abuse: how it is spoken to, and what it may never do."""

import asyncio
import json
import time
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import httpx

PATIENCE_S = 60.0
"""Longest wait for an answer."""

QUESTION: dict[str, Any] = {
    "messages": [{"role": "user", "content": "What is 17 + 25?"}],
    "temperature": 0,
    "max_tokens": 100,
}
CHAT = "/v1/chat/completions"
TALK: list[Any] = [{"role": "user", "content": "Hi."}]
VALID: dict[str, dict[str, Any]] = {
    CHAT: {"messages": TALK, "max_tokens": 2},
    "/v1/completions": {"prompt": "Hi.", "max_tokens": 2},
    "/v1/responses": {"input": "Hi.", "max_output_tokens": 16},
    "/v1/messages": {"messages": TALK, "max_tokens": 2},
    "/v1/messages/count_tokens": {"messages": TALK},
    "/tokenize": {"prompt": "Hi."},
    "/detokenize": {"tokens": [5, 6]},
}
"""The least that each endpoint answers with 200."""


@dataclass
class Target:
    """A server at `url`, and what was seen of it.

    findings: what it did wrong. statuses: how many answers had which status, by attack; 0 is a
    connection closed without one.
    """

    url: str
    http: httpx.AsyncClient
    findings: list[str] = field(default_factory=list)
    statuses: dict[str, Counter[int]] = field(default_factory=dict)
    attack: str = ""
    endpoints: dict[str, list[str]] = field(default_factory=dict)

    async def learn(self) -> None:
        """The paths that take a body, each with the names of its fields, from /openapi.json."""
        document = (await self.http.get("/openapi.json")).json()
        schemas = document["components"]["schemas"]
        for path, methods in document["paths"].items():
            if path in VALID and "post" in methods:
                content = methods["post"]["requestBody"]["content"]["application/json"]
                name = content["schema"].get("$ref", "").rpartition("/")[2]
                self.endpoints[path] = sorted(schemas.get(name, {}).get("properties", ()))

    def note(self, status: int, what: str, allowed: range | None = None) -> None:
        """Count an answer; one that is no 2xx, 3xx or 4xx, or not as expected, is a finding."""
        self.statuses.setdefault(self.attack, Counter())[status] += 1
        if status >= 500 or (allowed is not None and status not in allowed):
            self.findings.append(f"{self.attack}: {what[:120]} was answered with {status}")

    async def post(
        self, path: str, body: Any, what: str = "", allowed: range | None = None, **options: Any
    ) -> httpx.Response | None:
        """The answer to a body, a JSON value or bytes; no answer in time is a finding."""
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        headers = {"content-type": "application/json"} | options.pop("headers", {})
        try:
            answer = await self.http.post(path, content=content, headers=headers, **options)
        except httpx.HTTPError as error:
            self.findings.append(f"{self.attack}: {path} {what[:120]}: {type(error).__name__}")
            return None
        self.note(answer.status_code, f"{path} {what or content[:100]!r}", allowed)
        return answer

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        """A bare connection, closed when the block is left."""
        address = urlsplit(self.url)
        reader, writer = await asyncio.open_connection(address.hostname, address.port, limit=1024)
        try:
            yield reader, writer
        finally:
            writer.close()

    async def raw(self, data: bytes, what: str, allowed: range | None = None) -> None:
        """Send bytes as they are; the answer's status counts, or 0 for none."""
        async with self.connection() as (reader, writer):
            with suppress(ConnectionError):
                writer.write(data)
                await writer.drain()
            line = b""
            with suppress(ConnectionError, TimeoutError):
                line = await asyncio.wait_for(reader.readline(), PATIENCE_S)
            words = line.split()
            is_http = len(words) > 1 and words[0].startswith(b"HTTP/") and words[1].isdigit()
            self.note(int(words[1]) if is_http else 0, what, allowed)


def request_head(path: str, length: int, extra: Mapping[str, str] | None = None) -> bytes:
    """The head of a POST with a JSON body of `length` bytes."""
    headers = {"Host": "x", "Content-Type": "application/json", "Content-Length": str(length)}
    lines = [f"{name}: {value}" for name, value in {**headers, **(extra or {})}.items()]
    return "\r\n".join([f"POST {path} HTTP/1.1", *lines, "", ""]).encode()


@dataclass
class HealthWatch:
    """Asks /health ten times a second, on a connection of its own."""

    url: str
    times: list[float] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    async def run(self) -> None:
        async with httpx.AsyncClient(base_url=self.url, timeout=PATIENCE_S) as http:
            while True:
                start = time.perf_counter()
                try:
                    status = (await http.get("/health")).status_code
                    if status != 200:
                        self.failures.append(f"/health answered {status}")
                except httpx.HTTPError as error:
                    self.failures.append(f"/health: {type(error).__name__}")
                self.times.append(time.perf_counter() - start)
                await asyncio.sleep(0.1)
