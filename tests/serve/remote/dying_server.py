"""Starts an engine's process, says its number and waits: for a test that kills this one."""

import sys
import threading
from socket import socket

from glm_portable.serve.remote.process import Leash, start


def silent(sock: socket, leash: Leash) -> None:
    """An engine that loads for ever, and says when it has begun."""
    sock.sendall(b"1")
    threading.Event().wait()


def main() -> None:
    with start(silent) as engine:
        assert engine.sock.recv(1) == b"1"
        print(engine.pid, flush=True)
        sys.stdin.readline()


if __name__ == "__main__":
    main()
