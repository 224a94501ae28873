"""The engine's process: how it is started, and how the two processes end with each other."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from socket import MSG_PEEK, socket, socketpair
from typing import Any

from glm_portable.serve.remote.wire import receive

ENDING_S = 20.0
"""For the process to end by itself before it is killed; with ranks it waits for them meanwhile."""

TOLD = 70
"""Exit code of a process that has said on stderr why it ends."""


class EngineEnded(Exception):
    """The engine's process has ended by itself. sentence: why, None if it has said so."""

    def __init__(self, sentence: str | None) -> None:
        super().__init__(sentence)
        self.sentence = sentence


class Leash:
    """In the engine's process: ends it when the server goes."""

    def __init__(self, sock: socket) -> None:
        self._sock, self._released = sock, threading.Event()
        threading.Thread(target=self._watch, name="server", daemon=True).start()

    def release(self) -> None:
        """From here on somebody else listens, who ends the process in order."""
        self._released.set()

    def limit(self) -> None:
        """The server has gone: end in order, but soon."""
        timer = threading.Timer(ENDING_S, os._exit, [1])
        timer.daemon = True
        timer.start()

    def _watch(self) -> None:
        try:
            gone = not self._sock.recv(1, MSG_PEEK)
        except OSError:
            gone = True
        if gone and not self._released.is_set():
            os._exit(1)  # it may be in the middle of loading


class EngineProcess:
    """The engine's process, from the side of the server's. sock: the server's end."""

    def __init__(self, process: BaseProcess, sock: socket) -> None:
        self._process, self.sock = process, sock

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    def receive(self, kinds: Any) -> Any:
        """Its next message, before a client listens. Raises EngineEnded."""
        message = receive(self.sock, kinds)
        if message is None:
            raise EngineEnded(self.ending())
        return message

    def ending(self) -> str | None:
        """One sentence on how the process ended, None if it has told itself."""
        self._process.join(ENDING_S)
        code = self._process.exitcode
        if code == TOLD:
            return None
        if code is None:
            return "the engine's process does not answer any more."
        if code < 0:
            return f"the engine's process was ended by signal {-code}."
        return f"the engine's process ended with code {code}; its messages above say why."

    def close(self) -> None:
        """End it: in order, if it does so in time."""
        self.sock.close()
        self._process.join(ENDING_S)
        self._process.kill()
        self._process.join()


@contextmanager
def start(main: Callable[..., None], *arguments: Any) -> Iterator[EngineProcess]:
    """Have main(sock, leash, *arguments) called in a new process, which ends with the context.

    It is a fresh interpreter; the socket is all that the two have in common.
    """
    ours, theirs = socketpair()
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=_run, args=(main, theirs, arguments), name="engine")
    try:
        process.start()
    except BaseException:
        ours.close()
        raise
    finally:
        theirs.close()
    started = EngineProcess(process, ours)
    try:
        yield started
    finally:
        started.close()


def _run(main: Callable[..., None], sock: socket, arguments: tuple[Any, ...]) -> None:
    # A terminal, or a service manager, signals every process: the server acts upon it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    main(sock, Leash(sock), *arguments)
