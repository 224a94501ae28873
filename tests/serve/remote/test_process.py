"""How the two processes end with each other."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from select import select
from socket import socket
from typing import Any

import pytest

from glm_portable.serve.remote.process import TOLD, EngineEnded, Leash, start
from glm_portable.serve.remote.wire import Cancel, pack

ROOT = Path(__file__).parents[3]
WAIT_S = 60.0


def leave(sock: socket, leash: Leash, code: int) -> None:
    sys.exit(code)


def kill_itself(sock: socket, leash: Leash) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def answer(sock: socket, leash: Leash, number: int) -> None:
    """Says something, waits for the server to go, and notes that it has ended in order."""
    leash.release()
    sock.sendall(pack(Cancel(number)))
    assert sock.recv(1) == b""
    leash.limit()


def survive_signals(sock: socket, leash: Leash) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        os.kill(os.getpid(), number)
    sock.sendall(pack(Cancel(1)))


def test_messages_and_an_end_in_order() -> None:
    with start(answer, 7) as engine:
        assert engine.receive(Cancel) == Cancel(7)
    assert engine._process.exitcode == 0


@pytest.mark.parametrize(
    ("main", "arguments", "sentence"),
    [
        (leave, [3], "the engine's process ended with code 3; its messages above say why."),
        (leave, [TOLD], None),
        (kill_itself, [], "the engine's process was ended by signal 9."),
    ],
)
def test_a_process_that_ends_by_itself(main: Any, arguments: list[int], sentence: str) -> None:
    with start(main, *arguments) as engine, pytest.raises(EngineEnded) as caught:
        engine.receive(Cancel)
    assert caught.value.sentence == sentence


def test_signals_are_for_the_server_to_act_upon() -> None:
    with start(survive_signals) as engine:
        assert engine.receive(Cancel) == Cancel(1)


def test_a_server_that_is_killed_takes_the_loading_engine_with_it() -> None:
    command = [sys.executable, "-m", "tests.serve.remote.dying_server"]
    with subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as server:
        assert server.stdout is not None
        engine = os.pidfd_open(int(server.stdout.readline()))
        server.kill()
        server.wait(WAIT_S)
        assert select([engine], [], [], WAIT_S)[0], "the engine's process goes on alone"
        os.close(engine)
