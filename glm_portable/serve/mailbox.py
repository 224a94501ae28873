"""From the engine's thread to the event loop: one wake-up for all that waits."""

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable
from typing import Any


class Mailbox:
    """Calls functions on an event loop, in the order in which they were put.

    A step hands out one delta for each of hundreds of requests. Waking the loop costs a system
    call, so it is woken once and then calls all that has come by the time it gets round to it.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._waiting: deque[tuple[Callable[[Any], None], Any]] = deque()
        self._woken = False

    def put(self, receive: Callable[[Any], None], item: Any) -> None:
        """Have receive(item) called on the loop. From one other thread, or from several."""
        self._waiting.append((receive, item))
        if not self._woken:
            self._woken = True
            # The loop is closed only when the server was forced to stop: nobody is waiting then.
            with contextlib.suppress(RuntimeError):
                self.loop.call_soon_threadsafe(self._deliver)

    def _deliver(self) -> None:
        self._woken = False  # first: what is put from here on wakes the loop again
        for _ in range(len(self._waiting)):
            receive, item = self._waiting.popleft()
            receive(item)
