"""Two servers behind vllm-router, one of which ends under load: by SIGKILL, and by SIGTERM.

A router can retry what has not begun to answer, so no such request may be lost. A stream that was
cut off when its server died must be seen to be; one whose server drains goes on to its end.
"""

import json
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.clients.conversation import QUIET, SUM, SUM_ANSWER, asking
from tests.clients.server import WAIT_S, Server, serve

CLIENT = "vllm-router"
REQUESTS, AT_ONCE = 60, 6
BODY: dict[str, Any] = {"messages": asking(SUM), "temperature": 0}
OPTIONS = {
    "--policy": "round_robin",
    "--health-check-interval-secs": "1",
    "--health-failure-threshold": "2",
    "--health-success-threshold": "1",
    "--health-check-endpoint": "/health",
    "--retry-max-retries": "3",
    "--retry-initial-backoff-ms": "50",
    "--cb-failure-threshold": "3",
    "--cb-timeout-duration-secs": "5",
}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def routing(workers: list[Server], log: Path) -> Iterator[str]:
    """A router before `workers`; yields its address once it answers."""
    port, metrics = free_port(), free_port()
    address = ["--host", "127.0.0.1", "--port", str(port)]
    address += ["--prometheus-host", "127.0.0.1", "--prometheus-port", str(metrics)]
    urls = ["--worker-urls", *(worker.url for worker in workers)]
    options = [text for pair in OPTIONS.items() for text in pair]
    command = [str(Path(sys.executable).parent / "vllm-router"), *address, *urls, *options]
    with log.open("w") as output, subprocess.Popen(command, stdout=output, stderr=output) as router:
        try:
            url = f"http://127.0.0.1:{port}"
            deadline = time.monotonic() + WAIT_S
            while not answers(url):
                assert router.poll() is None and time.monotonic() < deadline, log.read_text()
            yield url
        finally:
            router.kill()


def answers(url: str) -> bool:
    try:
        return httpx.post(f"{url}/v1/chat/completions", json=BODY).status_code == 200
    except httpx.HTTPError:
        time.sleep(0.1)
        return False


class Load:
    """REQUESTS requests, AT_ONCE at a time; `halfway` is set when a third of them are done."""

    def __init__(self, url: str, stream: bool) -> None:
        self._url, self._stream = url, stream
        self._done = 0
        self._lock = threading.Lock()
        self.halfway = threading.Event()

    def run(self, pool: ThreadPoolExecutor) -> "list[Any]":
        return [pool.submit(self._ask) for _ in range(REQUESTS)]

    def _ask(self) -> str:
        """How one request ended: "whole", "cut" in the middle of its stream, or what it got."""
        try:
            return self._streamed() if self._stream else self._unstreamed()
        finally:
            with self._lock:
                self._done += 1
                if self._done >= REQUESTS // 3:
                    self.halfway.set()

    def _unstreamed(self) -> str:
        answer = httpx.post(f"{self._url}/v1/chat/completions", json=BODY, timeout=WAIT_S)
        if answer.status_code != 200:
            return f"{answer.status_code}: {answer.text[:200]}"
        return "whole" if answer.json()["choices"][0]["message"]["content"] == SUM_ANSWER else "odd"

    def _streamed(self) -> str:
        body, text, ended = BODY | {"stream": True}, "", False
        request = ("POST", f"{self._url}/v1/chat/completions")
        try:
            with httpx.stream(*request, json=body, timeout=WAIT_S) as answer:
                if answer.status_code != 200:
                    return f"{answer.status_code}"
                for line in answer.iter_lines():
                    ended |= line == "data: [DONE]"
                    if line and not ended:
                        chunk = json.loads(line.removeprefix("data: "))
                        text += chunk["choices"][0]["delta"].get("content") or ""
        except httpx.RemoteProtocolError:
            return "cut"
        if not ended:
            return "ended as if complete"
        return "whole" if text == SUM_ANSWER else "odd"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
def test_a_server_ends_under_load(
    server_python: str, server: Server, tmp_path: Path, end: signal.Signals, stream: bool
) -> None:
    exits = (-signal.SIGKILL,) if end == signal.SIGKILL else (0,)
    options = ["--dtype", "float32", "--max-num-seqs", "32"]
    with ExitStack() as stack:
        doomed = stack.enter_context(serve(server_python, *options, expect_exit=exits))
        url = stack.enter_context(routing([server, doomed], tmp_path / "router.log"))
        pool = stack.enter_context(ThreadPoolExecutor(AT_ONCE))
        load = Load(url, stream)
        asked = load.run(pool)
        assert load.halfway.wait(WAIT_S)
        doomed.process.send_signal(end)
        results = [answer.result() for answer in asked]
        assert doomed.process.wait(WAIT_S) in exits
        assert answers(url)  # by the one that is left
    cut = results.count("cut")
    assert results.count("whole") == REQUESTS - cut, sorted({*results} - {"whole", "cut"})
    if end == signal.SIGTERM or not stream:
        assert cut == 0
    else:  # at most those that the dead server was answering
        assert cut <= AT_ONCE


def test_fields_that_a_router_rewrites(server: Server, tmp_path: Path) -> None:
    """It renames reasoning_content in the history and adds fields of its own."""
    thought = {"role": "assistant", "content": SUM_ANSWER, "reasoning_content": "I add."}
    body = BODY | QUIET | {"messages": [*asking(SUM), thought, *asking("Hello!")]}
    with routing([server], tmp_path / "router.log") as url:
        for path in ("/v1/models", "/health"):
            assert httpx.get(url + path).status_code == 200
        routed = httpx.post(f"{url}/v1/chat/completions", json=body).json()
    direct = httpx.post(f"{server.api}/chat/completions", json=body).json()
    assert routed["choices"] == direct["choices"]
