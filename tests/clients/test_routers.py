"""Two servers behind a router, one of which ends under load: by SIGKILL, and by SIGTERM.

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
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.clients.conversation import MODEL, QUIET, SUM, SUM_ANSWER, asking
from tests.clients.server import WAIT_S, Server, serve

ROUTERS = {"vllm-router": ["vllm-router"], "sglang-router": ["sglang-router", "launch"]}
CLIENT = " ".join(ROUTERS)
REQUESTS, AT_ONCE = 20, 6
"""REQUESTS end before a server does, and again after it; AT_ONCE are in flight."""

DRAIN_DELAY_S = 5
"""More than two health checks a second apart: so many fail before a router below turns away."""

CHAT = "/v1/chat/completions"
BODY: dict[str, Any] = {"model": MODEL, "messages": asking(SUM), "temperature": 0}
OPTIONS = {
    "--policy": "round_robin",
    "--health-check-interval-secs": "1",
    "--health-failure-threshold": "2",
    "--health-success-threshold": "1",
    "--health-check-endpoint": "/health",
    "--retry-initial-backoff-ms": "50",
    "--cb-failure-threshold": "3",
    "--cb-timeout-duration-secs": "5",
}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def routing(router: str, workers: list[Server], log: Path, tries: int = 3) -> Iterator[str]:
    """A router before `workers`; yields its address once it answers. tries: for each request."""
    port, metrics = free_port(), free_port()
    address = ["--host", "127.0.0.1", "--port", str(port)]
    address += ["--prometheus-host", "127.0.0.1", "--prometheus-port", str(metrics)]
    urls = ["--worker-urls", *(worker.url for worker in workers)]
    options = [text for pair in OPTIONS.items() for text in pair]
    options += ["--retry-max-retries", str(tries)]
    program, *command = ROUTERS[router]
    command = [str(Path(sys.executable).parent / program), *command, *address, *urls, *options]
    with (
        log.open("w") as out,
        subprocess.Popen(command, stdout=out, stderr=out) as process,
    ):
        try:
            url = f"http://127.0.0.1:{port}"
            deadline = time.monotonic() + WAIT_S
            while not answers(url):
                assert process.poll() is None and time.monotonic() < deadline, log.read_text()
            yield url
        finally:
            process.kill()


def answers(url: str) -> bool:
    try:
        return httpx.post(url + CHAT, json=BODY).status_code == 200
    except httpx.HTTPError:
        time.sleep(0.1)
        return False


class Load:
    """AT_ONCE clients that ask again and again until the block ends; `results`: how they fared."""

    def __init__(self, url: str, stream: bool) -> None:
        self._stream = stream
        self._client = httpx.Client(base_url=url, timeout=WAIT_S)  # one for all: making it is slow
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._ask_on) for _ in range(AT_ONCE)]
        self.results: list[str] = []

    def __enter__(self) -> "Load":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()
        self._client.close()

    def wait_for(self, more: int) -> None:
        """Until so many more requests have ended."""
        target, deadline = len(self.results) + more, time.monotonic() + WAIT_S
        while len(self.results) < target:
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def _ask_on(self) -> None:
        while not self._over.is_set():
            self.results.append(self._ask())

    def _ask(self) -> str:
        """How one request ended: "whole", "cut" in the middle of its stream, or what it got."""
        try:
            return self._streamed() if self._stream else self._unstreamed()
        except httpx.HTTPError as error:
            return repr(error)

    def _unstreamed(self) -> str:
        answer = self._client.post(CHAT, json=BODY)
        if answer.status_code != 200:
            return f"{answer.status_code}: {answer.text[:200]}"
        return "whole" if answer.json()["choices"][0]["message"]["content"] == SUM_ANSWER else "odd"

    def _streamed(self) -> str:
        text, ended = "", False
        with self._client.stream("POST", CHAT, json=BODY | {"stream": True}) as answer:
            if answer.status_code != 200:
                return f"{answer.status_code}: {answer.read().decode()[:200]}"
            try:
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


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM], ids=["SIGKILL", "SIGTERM"])
@pytest.mark.parametrize("router", ROUTERS)
def test_a_server_ends_under_load(
    server_python: str,
    server: Server,
    tmp_path: Path,
    router: str,
    end: signal.Signals,
    stream: bool,
) -> None:
    exits = (-signal.SIGKILL,) if end == signal.SIGKILL else (0,)
    tries = 3 if end == signal.SIGKILL else 1  # a drain needs no second
    options = ["--dtype", "float32", "--max-num-seqs", "32", "--drain-delay", str(DRAIN_DELAY_S)]
    log = tmp_path / "router.log"
    with ExitStack() as stack:
        doomed = stack.enter_context(serve(server_python, *options, expect_exit=exits))
        url = stack.enter_context(routing(router, [server, doomed], log, tries))
        with Load(url, stream) as load:
            load.wait_for(REQUESTS)
            doomed.process.send_signal(end)
            assert doomed.process.wait(WAIT_S) in exits
            load.wait_for(REQUESTS)  # by the one that is left
    results = Counter(load.results)
    cut = results.pop("cut", 0)
    print(dict(results), f"cut: {cut}")
    assert set(results) == {"whole"}, results
    if end == signal.SIGTERM or not stream:
        assert cut == 0
    else:  # at most those that the dead server was answering
        assert cut <= AT_ONCE


@pytest.mark.parametrize("router", ROUTERS)
def test_fields_that_a_router_rewrites(server: Server, tmp_path: Path, router: str) -> None:
    """They rename fields of the history, and add and drop others."""
    thought = {"role": "assistant", "content": SUM_ANSWER, "reasoning_content": "I add."}
    body = BODY | QUIET | {"messages": [*asking(SUM), thought, *asking("Hello!")]}
    with routing(router, [server], tmp_path / "router.log") as url:
        for path in ("/v1/models", "/health"):
            assert httpx.get(url + path).status_code == 200
        routed = httpx.post(url + CHAT, json=body).json()
    direct = httpx.post(server.url + CHAT, json=body).json()
    assert routed["choices"] == direct["choices"]
