"""Clients that leave, clients that stall, and the end of the server."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from glm_portable.errors import UsageError
from glm_portable.serve.server import bind, run
from glm_portable.serve.settings import ServerSettings
from tests.serve.conversation import HI
from tests.serve.fake_engine import (
    WAIT_S,
    FakeEngine,
    Running,
    Submitted,
    eventually,
    fake_server,
    fake_service,
    says,
)
from tests.serve.raw import connect, read_to_the_end, start_request

CHAT = "/v1/chat/completions"
SLOW_SERVER = Path(__file__).parent / "slow_server.py"


def by_hand(request: Submitted) -> list[Any]:
    return []


def reset(connection: socket.socket) -> None:
    """Close with RST instead of FIN."""
    linger = b"\x01\x00\x00\x00\x00\x00\x00\x00"
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    connection.close()


@pytest.mark.parametrize("leave", [socket.socket.close, reset])
@pytest.mark.parametrize("options", [{}, {"stream": True}, {"n": 3}, {"n": 2, "stream": True}])
def test_a_client_that_leaves_frees_its_requests(
    server: Running, leave: Callable[[socket.socket], None], options: dict[str, Any]
) -> None:
    server.engine.script = by_hand
    connection = start_request(server.url, **options)
    requests = server.engine.wait_for(options.get("n", 1))
    requests[0].send(says("Hello")[0])
    leave(connection)
    assert all(request.cancelled.wait(WAIT_S) for request in requests)


def test_a_choice_that_has_ended_is_not_cancelled(server: Running) -> None:
    server.engine.script = lambda r: says("Hi") if r is server.engine.requests[0] else []
    connection = start_request(server.url, n=2, stream=True)
    requests = server.engine.wait_for(2)
    received = b""
    while b'"finish_reason":"stop"' not in received:
        received += connection.recv(4096)
    connection.close()
    assert requests[1].cancelled.wait(WAIT_S)
    assert not requests[0].cancelled.is_set()


def test_a_finished_request_is_not_cancelled(server: Running, http: httpx.Client) -> None:
    for stream in (False, True):
        assert http.post(CHAT, json={"messages": HI, "stream": stream}).status_code == 200
    assert not any(request.cancelled.is_set() for request in server.engine.requests)
    eventually(lambda: not server.service.running)


def test_a_client_that_leaves_in_its_body_harms_nobody(server: Running, http: httpx.Client) -> None:
    with connect(server.url) as connection:
        head = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        connection.sendall(f'{head}Content-Length: 100\r\n\r\n{{"mess'.encode())
    assert http.get("/health").status_code == 200
    assert server.engine.requests == []


def test_a_client_that_does_not_read_holds_nobody(server: Running, http: httpx.Client) -> None:
    """The engine delivers far more than any socket buffers, and is never made to wait."""
    delivered = threading.Event()
    piece = says("word " * 100)[0]

    def much(request: Submitted) -> list[Any]:
        if request is server.engine.requests[0]:
            big = type(piece)(piece.token_ids, "x" * 100_000)
            for _ in range(200):
                request.send(big)
            delivered.set()
            return []
        return says("Hello there.")

    server.engine.script = much
    connection = start_request(server.url, stream=True)
    assert delivered.wait(WAIT_S)
    answer = http.post(CHAT, json={"messages": HI}).json()
    assert answer["choices"][0]["message"]["content"] == "Hello there."
    connection.close()
    assert server.engine.requests[0].cancelled.wait(WAIT_S)


@contextmanager
def streaming(running: Running) -> Iterator[tuple[Submitted, Iterator[str]]]:
    """A stream whose first token has arrived; the test sends the others."""
    running.engine.script = by_hand
    with httpx.Client(timeout=WAIT_S) as client:
        body = {"messages": HI, "stream": True}
        with client.stream("POST", running.url + CHAT, json=body) as response:
            request = running.engine.wait_for(1)[0]
            request.send(says("Hello")[0])
            lines = response.iter_lines()
            assert "assistant" in next(lines)
            yield request, lines


def test_a_drain_finishes_what_runs_and_refuses_the_rest() -> None:
    with fake_server() as running:
        with streaming(running) as (request, lines):
            running.server.drain()
            for refused in (
                httpx.get(f"{running.url}/health"),
                httpx.post(running.url + CHAT, json={"messages": HI}),
                httpx.post(f"{running.url}/v1/completions", json={"prompt": "a"}),
            ):
                assert refused.status_code == 503
                assert refused.headers["retry-after"] == "1"
                assert "shutting down" in refused.json()["error"]["message"]
            assert httpx.get(f"{running.url}/v1/models").status_code == 200
            assert running.thread.is_alive()
            request.send(says("")[-1])
            assert "data: [DONE]" in list(lines)
        running.join()
        assert not running.server.cut_off and len(running.engine.requests) == 1


def test_what_outlasts_the_grace_ends_in_an_error() -> None:
    with fake_server(drain_grace_s=0.2) as running:
        with streaming(running) as (request, lines):
            running.server.drain()
            rest = [line for line in lines if line]
        assert "stopped before the answer was complete" in rest[-1]
        assert "data: [DONE]" not in rest
        assert request.cancelled.wait(WAIT_S)
        running.join()
        assert running.server.cut_off


def test_an_idle_server_ends_at_once() -> None:
    with fake_server(drain_grace_s=10 * WAIT_S) as running:
        with connect(running.url):  # an idle connection does not count
            running.server.drain()
            running.join()


def test_requests_are_served_while_routers_learn_of_the_end() -> None:
    with fake_server(drain_delay_s=10 * WAIT_S) as running:
        with httpx.Client(base_url=running.url, timeout=WAIT_S) as client:
            answer = client.post(CHAT, json={"messages": HI})
            assert "connection" not in answer.headers
            running.server.handle_exit(signal.SIGTERM, None)
            for path in ("/health", "/ready", "/health?check=numerics"):
                assert client.get(path).status_code == 503
            assert client.get("/live").status_code == 200
            for stream in (False, True):
                answer = client.post(CHAT, json={"messages": HI, "stream": stream})
                assert answer.status_code == 200
                assert answer.headers["connection"] == "close"  # the next goes to another server
        idle = asyncio.run(running.server.on_tick(1))
        assert not idle and running.thread.is_alive()
        running.server.drain()  # as when the engine ends
        running.join()
        assert not running.server.cut_off


def test_the_delay_ends() -> None:
    with fake_server(drain_delay_s=0.1) as running:
        with streaming(running) as (request, lines):
            running.engine.script = lambda request: says("Hello there.")
            running.server.handle_exit(signal.SIGTERM, None)
            while (answer := httpx.post(running.url + CHAT, json={"messages": HI})).is_success:
                pass  # it is not over yet
            assert answer.status_code == 503 and answer.headers["retry-after"] == "1"
            request.send(says("")[-1])
            assert "data: [DONE]" in list(lines)
        running.join()
        assert not running.server.cut_off


@pytest.mark.parametrize("numbers", [[signal.SIGINT], [signal.SIGTERM, signal.SIGTERM]])
def test_ctrl_c_and_a_second_signal_do_not_wait_for_routers(numbers: list[int]) -> None:
    with fake_server(drain_delay_s=10 * WAIT_S) as running:
        for number in numbers:
            running.server.handle_exit(number, None)
        running.join()


@pytest.fixture
def process() -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The server as a process of its own; its engine answers with one token, then nothing."""
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, str(SLOW_SERVER)]
    with subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as started:
        assert started.stdout is not None
        try:
            yield started, started.stdout.readline().strip()
        finally:
            started.kill()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_drains(process: tuple[subprocess.Popen[str], str], number: int) -> None:
    server, url = process
    assert server.stdin is not None
    body = {"messages": HI, "stream": True}
    with httpx.stream("POST", url + CHAT, json=body, timeout=WAIT_S) as response:
        lines = response.iter_lines()
        assert "assistant" in next(lines)
        server.send_signal(number)
        while httpx.get(f"{url}/health").status_code == 200:
            pass  # the signal is on its way
        assert httpx.post(url + CHAT, json=body).status_code == 503
        server.stdin.write("finish\n")
        server.stdin.flush()
        assert "data: [DONE]" in list(lines)
    assert server.wait(WAIT_S) == 0


def test_a_second_signal_ends_at_once(process: tuple[subprocess.Popen[str], str]) -> None:
    server, url = process
    connection = start_request(url, stream=True)
    assert connection.recv(4096).startswith(b"HTTP/1.1 200")
    server.send_signal(signal.SIGTERM)
    while httpx.get(f"{url}/health").status_code == 200:
        pass
    server.send_signal(signal.SIGTERM)
    assert server.wait(WAIT_S) == 1
    try:
        rest = read_to_the_end(connection)
    except ConnectionResetError:
        rest = b""
    assert b"[DONE]" not in rest and not rest.endswith(b"0\r\n\r\n")


def test_a_taken_port_is_named() -> None:
    with fake_server() as running:
        port = int(running.url.rpartition(":")[2])
        with pytest.raises(UsageError, match=f"port {port} .*--port"):
            run(fake_service(FakeEngine(), ServerSettings(port=port)))


def test_an_address_of_another_machine() -> None:
    with pytest.raises(UsageError, match="192.0.2.1"):
        bind(ServerSettings(host="192.0.2.1", port=0))


@pytest.mark.parametrize(
    "wrong",
    [
        {"served_model_names": ()},
        {"api_keys": ("",)},
        {"port": 70000},
        {"port": -1},
        {"drain_delay_s": -1.0},
        {"drain_delay_s": float("inf")},
    ],
)
def test_wrong_settings(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        ServerSettings(**wrong)


def test_ipv6() -> None:
    with fake_server(host="::1") as running:
        assert running.url.startswith("http://[::1]:")
        assert httpx.get(f"{running.url}/health").status_code == 200


def test_nothing_is_written_to_the_terminal(
    server: Running, http: httpx.Client, capfd: pytest.CaptureFixture[str]
) -> None:
    http.post(CHAT, json={"messages": HI})
    http.post(CHAT, content=b"{")
    assert capfd.readouterr() == ("", "")
