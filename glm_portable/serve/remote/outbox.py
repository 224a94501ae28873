"""Sends messages without making whoever has them wait for the other side."""

import threading
from collections import deque
from socket import MSG_DONTWAIT, socket


class Outbox:
    """Writes to a socket from any thread; what it does not take at once, a thread sends later.

    What waits is bounded by what may be sent at all: a request's answer has an end. After the other
    side has gone, all is dropped.
    """

    def __init__(self, sock: socket) -> None:
        self._sock = sock
        self._waiting: deque[bytes | memoryview] = deque()
        self._changed = threading.Condition()  # guards the ones here
        self._sending = self._gone = False
        self._thread: threading.Thread | None = None

    def send(self, data: bytes) -> None:
        """Messages go in the order in which this is called."""
        with self._changed:
            if self._gone:
                return
            rest: bytes | memoryview = data
            if not self._waiting and not self._sending:
                rest = self._send_now(data)
            if rest:
                self._waiting.append(rest)
                self._start()
                self._changed.notify_all()

    def _send_now(self, data: bytes) -> memoryview:
        """As much as the socket takes; the rest."""
        try:
            sent = self._sock.send(data, MSG_DONTWAIT)
        except BlockingIOError:
            sent = 0
        except OSError:
            self._gone = True
            return memoryview(b"")
        return memoryview(data)[sent:]

    def _start(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="outbox", daemon=True)
            self._thread.start()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._sending = False
                self._changed.wait_for(lambda: self._waiting)
                data, self._sending = self._waiting.popleft(), True
            try:
                self._sock.sendall(data)
            except OSError:
                with self._changed:
                    self._gone, self._sending = True, False
                    self._waiting.clear()
                    self._changed.notify_all()
                return
