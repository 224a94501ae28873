"""`glm-portable serve` as it is run: an HTTP server here, an engine in a process of its own."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from select import select
from typing import Any

import httpx
import pytest

from tests.serve.conversation import HI
from tests.test_processes import started_by
from tests.virtual.test_serving import MAIN, _until

WAIT_S = 120.0
ENDLESS = {"prompt": "I am GLM", "max_tokens": 7000, "ignore_eos": True, "stream": True}


@contextmanager
def served(*arguments: str) -> Iterator[tuple[str, subprocess.Popen[str], int]]:
    """(URL, server, the engine's process); the server is killed if it still runs."""
    command = [sys.executable, "-c", MAIN, "serve", "--port", "0", "--backend", "cpu", *arguments]
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        assert server.stderr is not None
        printed = _until(server.stderr, "Serving ")
        found = re.search(r"http://\S+(?=/v1)", printed)
        assert found, printed
        [engine] = started_by(server.pid)
        yield found.group(), server, engine
    finally:
        server.kill()
        server.wait(WAIT_S)


def test_the_server_imports_no_torch() -> None:
    code = "import sys, glm_portable.serving; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_both_processes_answer_log_measure_and_end_in_order() -> None:
    quiet = ("--default-chat-template-kwargs", '{"enable_thinking": false}')
    with served("--log-format", "json", "--log-level", "debug", *quiet) as (url, server, engine):
        ended = os.pidfd_open(engine)
        body: dict[str, Any] = {"messages": HI, "max_tokens": 5, "temperature": 0}
        body["response_format"] = {"type": "json_object"}  # a grammar: compiled on both sides
        answer = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=WAIT_S)
        assert answer.status_code == 200, answer.text
        message = answer.json()["choices"][0]["message"]
        assert message["content"] and "reasoning_content" not in message
        health = httpx.get(f"{url}/health", params={"check": "numerics"}, timeout=WAIT_S)
        assert health.json()["numerics"]["drift"] == 0.0
        found = httpx.get(f"{url}/metrics", timeout=WAIT_S).text
        assert re.search(r"vllm:generation_tokens_total\S* (9|1\d)\.0", found)
        memory = re.findall(r"^(\w*process_resident_memory_bytes) (\S+)$", found, re.MULTILINE)
        sizes = {name: float(value) for name, value in memory}
        assert 0 < sizes["process_resident_memory_bytes"]
        assert sizes["glm_portable_engine_process_resident_memory_bytes"] > 2e8  # torch alone
        os.kill(engine, signal.SIGTERM)  # as a service manager does that signals all
        os.kill(engine, signal.SIGINT)
        with httpx.stream(
            "POST", f"{url}/v1/completions", json=ENDLESS | {"max_tokens": 40}, timeout=WAIT_S
        ) as stream:
            lines = stream.iter_lines()
            next(lines)
            server.terminate()
            assert "data: [DONE]" in list(lines)
        assert server.wait(WAIT_S) == 0
        assert server.stderr is not None
        assert all(json.loads(line) for line in server.stderr)
        assert select([ended], [], [], 0)[0], "the engine's process outlived the server"
        os.close(ended)


def test_an_engine_that_is_killed_ends_the_server_with_one_sentence() -> None:
    with served() as (url, server, engine):
        last = ""
        with httpx.stream("POST", f"{url}/v1/completions", json=ENDLESS, timeout=WAIT_S) as stream:
            for number, line in enumerate(stream.iter_lines()):
                last = line or last
                if number == 4:
                    os.kill(engine, signal.SIGKILL)
        error = json.loads(last.removeprefix("data: "))["error"]
        assert error["code"] == "engine_error" and "The engine has ended" in error["message"]
        assert server.wait(WAIT_S) == 1
        assert server.stderr is not None
        sentences = [line for line in server.stderr if "Error: " in line]
        assert sentences == [
            "Error: the engine's process was ended by signal 9. The server ends.\n"
        ]


def test_a_server_that_is_killed_leaves_no_engine() -> None:
    """Not even in the middle of an answer."""
    with served() as (url, server, engine):
        ended = os.pidfd_open(engine)
        with (
            httpx.stream("POST", f"{url}/v1/completions", json=ENDLESS, timeout=WAIT_S) as stream,
            pytest.raises(httpx.RemoteProtocolError),
        ):
            for number, _ in enumerate(stream.iter_lines()):
                if number == 4:
                    server.kill()
        assert select([ended], [], [], WAIT_S)[0]
        os.close(ended)


def test_what_cannot_be_loaded_is_told_in_one_sentence() -> None:
    command = [sys.executable, "-c", MAIN, "serve", "--port", "0", "--backend", "nothing"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert re.fullmatch(r"Error: .*nothing.*\n", done.stderr), done.stderr


def test_an_engine_that_is_killed_while_it_loads_is_told_of() -> None:
    """As the kernel does when memory runs out."""
    command = [sys.executable, "-c", MAIN, "serve", "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        while not (engines := started_by(server.pid)):
            assert server.poll() is None
        os.kill(engines[0], signal.SIGKILL)
        _, told = server.communicate(timeout=WAIT_S)
    assert server.returncode == 1
    assert told == "Error: the engine's process was ended by signal 9. The server ends.\n"
