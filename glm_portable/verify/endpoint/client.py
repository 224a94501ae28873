"""Requests to a server that may answer anything: every surprise becomes one of two exceptions."""

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import httpx

from glm_portable.errors import UsageError

CHAT, COMPLETIONS, MODELS = "/v1/chat/completions", "/v1/completions", "/v1/models"
MAX_BYTES = 64 * 2**20
"""Of one answer; more is no answer to any request made here."""
_NOT_DONE = 501


class Refused(Exception):
    """The server says no (4xx, or 501): it does not know the feature, or the request is wrong."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(f"{status}: {brief(message_of(text))}")
        self.status, self.text = status, text


class Broken(Exception):
    """No proper answer: a timeout, a closed connection, 5xx, or something other than announced."""


@dataclass(frozen=True)
class Stream:
    """The JSON objects of a stream of server-sent events, and whether [DONE] ended it."""

    chunks: tuple[dict[str, Any], ...]
    done: bool


class Client:
    """A server of the OpenAI API at `url`, with or without the /v1. Thread-safe.

    timeout: seconds for one answer, from the first byte sent to the last received.
    """

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        timeout: float = 120.0,
        connections: int = 64,
    ) -> None:
        self.url = url.rstrip("/").removesuffix("/v1")
        if not self.url.startswith(("http://", "https://")):
            raise UsageError(f"{url!r} is no address: write it as http://HOST:PORT.")
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self.timeout = timeout
        self._http = httpx.Client(
            headers=headers,
            timeout=timeout,
            limits=httpx.Limits(max_connections=connections, max_keepalive_connections=connections),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._http.close()

    def get(self, path: str) -> Any:
        """The JSON at a path. Raises Refused and Broken."""
        return _parsed(path, *self._whole("GET", path))

    def post(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """The JSON object that answers a request. Raises Refused and Broken."""
        return _parsed(path, *self._whole("POST", path, json.dumps(body).encode()))

    def status(self, path: str, content: bytes) -> tuple[int, str]:
        """(status, text) that answers whatever was sent. Raises Broken if nothing does."""
        return self._whole("POST", path, content)

    def stream(self, path: str, body: Mapping[str, Any]) -> Stream:
        """All events of a streamed answer. Raises Refused and Broken."""
        content = json.dumps({**body, "stream": True}).encode()
        with self._answer("POST", path, content) as (response, pieces):
            text = b"".join(pieces).decode(errors="replace")
            _check_status(path, response.status_code, text)
            kind = response.headers.get("content-type", "")
        if not kind.startswith("text/event-stream"):
            raise Broken(f"{path} was asked to stream and answered with {kind or 'no type'!r}")
        return _events(path, text)

    def _whole(self, method: str, path: str, content: bytes | None = None) -> tuple[int, str]:
        with self._answer(method, path, content) as (response, pieces):
            return response.status_code, b"".join(pieces).decode(errors="replace")

    @contextmanager
    def _answer(
        self, method: str, path: str, content: bytes | None
    ) -> Iterator[tuple[httpx.Response, Iterator[bytes]]]:
        headers = {"Content-Type": "application/json"} if content is not None else {}
        begin = time.monotonic()
        try:
            with self._http.stream(
                method, self.url + path, content=content, headers=headers
            ) as response:
                yield response, self._bounded(response, path, begin)
        except httpx.TimeoutException:
            raise Broken(f"{path} gave no answer within {self.timeout:g} s") from None
        except httpx.HTTPError as error:
            reason = str(error) or type(error).__name__
            raise Broken(f"{path} broke off the connection ({reason})") from None
        except httpx.InvalidURL as error:
            raise UsageError(f"{self.url} is no address ({error}).") from None

    def _bounded(self, response: httpx.Response, path: str, begin: float) -> Iterator[bytes]:
        """A server that sends a byte now and then must not hold us for ever."""
        size = 0
        for piece in response.iter_bytes():
            size += len(piece)
            if time.monotonic() - begin > self.timeout:
                raise Broken(f"{path} was still sending after {self.timeout:g} s")
            if size > MAX_BYTES:
                raise Broken(f"{path} sent more than {MAX_BYTES} bytes")
            yield piece


def _check_status(path: str, status: int, text: str) -> None:
    if 400 <= status < 500 or status == _NOT_DONE:
        raise Refused(status, text)
    if status != 200:
        raise Broken(f"{path} answered {status}: {brief(message_of(text))}")


def _parsed(path: str, status: int, text: str) -> dict[str, Any]:
    _check_status(path, status, text)
    try:
        body = json.loads(text)
    except (ValueError, RecursionError):
        raise Broken(f"{path} answered 200 with what is no JSON: {brief(text)!r}") from None
    if not isinstance(body, dict):
        raise Broken(f"{path} answered 200 with JSON that is no object: {brief(text)!r}")
    if "error" in body and "choices" not in body:
        raise Broken(f"{path} answered 200 with an error: {brief(message_of(text))}")
    return body


def _events(path: str, text: str) -> Stream:
    chunks: list[dict[str, Any]] = []
    for line in text.split("\n"):
        data = line.rstrip("\r").removeprefix("data:").strip()
        if not line.startswith("data:") or not data:
            continue  # comments, event names and the blank lines between events
        if data == "[DONE]":
            return Stream(tuple(chunks), True)
        try:
            chunk = json.loads(data)
        except ValueError:
            raise Broken(f"{path} streamed an event that is no JSON: {brief(data)!r}") from None
        if not isinstance(chunk, dict) or "error" in chunk:
            raise Broken(f"{path} streamed an error: {brief(message_of(data))}")
        chunks.append(chunk)
    return Stream(tuple(chunks), False)


def message_of(text: str) -> str:
    """The sentence of an OpenAI error object, or the text itself."""
    try:
        body = json.loads(text)
    except (ValueError, RecursionError):
        return text
    error = body.get("error", body) if isinstance(body, dict) else body
    found = error.get("message", error.get("detail")) if isinstance(error, dict) else error
    return found if isinstance(found, str) else text


def brief(text: str, limit: int = 160) -> str:
    """On one line, cut to what fits into a sentence."""
    line = " ".join(text.split())
    return line if len(line) <= limit else f"{line[: limit - 3]}..."
