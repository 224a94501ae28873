"""The log: one line a request, with its id, its counts, and none of its text."""

import io
import json
import logging
import sys
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from glm_portable.serve import logs
from glm_portable.serve.logs import LogFormat
from tests.serve.conversation import HI
from tests.serve.fake_engine import Running, eventually, says
from tests.serve.raw import start_request

CHAT = "/v1/chat/completions"
Configure = Callable[..., io.StringIO]


@pytest.fixture
def configure(monkeypatch: pytest.MonkeyPatch) -> Iterator[Configure]:
    """Sets the log up as `serve` does; what it returns holds the lines. Undone at the end."""
    root, loggers = logging.getLogger(), [logs.access, logging.getLogger("uvicorn.error")]
    handlers, level = root.handlers[:], root.level
    states = [(logger.disabled, logger.level) for logger in loggers]

    def start(log_format: LogFormat = "json", level: str = "info", **options: Any) -> io.StringIO:
        written = io.StringIO()
        monkeypatch.setattr(sys, "stderr", written)
        root.handlers = []
        logs.configure(log_format, level, **options)
        monkeypatch.undo()
        return written

    yield start
    root.handlers, root.level = handlers, level
    for logger, (disabled, old) in zip(loggers, states, strict=True):
        logger.disabled = disabled
        logger.setLevel(old)


def lines(written: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in written.getvalue().splitlines()]


def access_of(written: io.StringIO, request_id: str) -> dict[str, Any]:
    def found() -> list[dict[str, Any]]:
        return [
            line
            for line in lines(written)
            if line["logger"] == "glm_portable.access" and line["request_id"] == request_id
        ]

    eventually(lambda: bool(found()))
    (line,) = found()
    return line


@pytest.mark.parametrize("stream", [False, True])
def test_a_request_leaves_one_line(
    server: Running, http: httpx.Client, configure: Configure, stream: bool
) -> None:
    server.engine.script = lambda request: says("A secret answer.")
    written = configure()
    secret: Any = [{"role": "user", "content": "A secret question"}]
    body = {"messages": secret, "stream": stream, "n": 2}
    assert http.post(CHAT, json=body, headers={"x-request-id": "mine"}).status_code == 200
    line = access_of(written, "mine")
    assert (line["method"], line["path"], line["status"]) == ("POST", CHAT, 200)
    assert line["prompt_tokens"] == len(server.engine.requests[0].prompt_ids)
    assert line["completion_tokens"] == 2 * len(says("A secret answer."))
    assert line["finish_reason"] == "stop,stop"
    assert line["level"] == "info" and line["duration_s"] > 0 and line["time"]
    assert "secret" not in written.getvalue()


def test_the_engine_knows_whose_request_it_is(server: Running, http: httpx.Client) -> None:
    http.post(CHAT, json={"messages": HI}, headers={"x-request-id": "mine"})
    assert server.engine.requests[0].name == "mine"


def test_errors_and_polls(server: Running, http: httpx.Client, configure: Configure) -> None:
    written = configure()
    http.post(CHAT, content=b"{", headers={"x-request-id": "wrong"})
    assert access_of(written, "wrong")["error"]
    http.get("/health", headers={"x-request-id": "poll"})
    http.get("/version", headers={"x-request-id": "last"})
    access_of(written, "last")
    assert "poll" not in written.getvalue()
    assert "poll" in _after_debug(http, configure)


def _after_debug(http: httpx.Client, configure: Configure) -> str:
    written = configure(level="debug")
    http.get("/health", headers={"x-request-id": "poll"})
    access_of(written, "poll")
    return written.getvalue()


def test_a_client_that_left_is_told_apart(server: Running, configure: Configure) -> None:
    written = configure()
    server.engine.script = lambda request: says("Hello")[:1]
    connection = start_request(server.url, stream=True)
    connection.recv(100)
    connection.close()
    eventually(lambda: "client_disconnected" in written.getvalue())


def test_a_failure_is_logged_with_the_id(
    server: Running, http: httpx.Client, configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*arguments: Any, **options: Any) -> int:
        raise RuntimeError("address 0x7f")

    written = configure()
    monkeypatch.setattr(server.engine, "submit", broken)
    answer = http.post(CHAT, json={"messages": HI}, headers={"x-request-id": "broken"})
    assert answer.status_code == 500 and "0x7f" not in answer.text
    assert access_of(written, "broken")["error"] == "internal_error"
    failed = next(line for line in lines(written) if line["level"] == "error")
    assert failed["request_id"] == "broken" and "0x7f" in failed["exception"]


def test_text_lines(http: httpx.Client, hello: str, configure: Configure) -> None:
    written = configure("text")
    http.post(CHAT, json={"messages": HI}, headers={"x-request-id": "mine"})
    eventually(lambda: "[mine]" in written.getvalue())
    (line,) = written.getvalue().splitlines()
    assert f"INFO glm_portable.access: POST {CHAT} 200 0." in line
    assert "completion_tokens=" in line and line.endswith("finish_reason=stop [mine]")


def test_it_can_be_turned_off(http: httpx.Client, hello: str, configure: Configure) -> None:
    written = configure(log_requests=False)
    http.post(CHAT, json={"messages": HI})
    logging.getLogger("glm_portable.serve").warning("something else")
    assert [line["message"] for line in lines(written)] == ["something else"]


def test_a_path_cannot_forge_a_line(http: httpx.Client, configure: Configure) -> None:
    written = configure("text")
    http.get("/a%0aINFO%20forged", headers={"x-request-id": "mine"})
    eventually(lambda: "[mine]" in written.getvalue())
    assert len(written.getvalue().splitlines()) == 1
