"""Memory that large requests took goes back to the system.

glibc keeps what is freed, for each thread that asked for it, wherever something small that is still
in use lies behind it: two threads that parse and tokenise, the engine's and those that write and
compile grammars keep tens of MiB each, and the sum goes on growing slowly.
"""

import asyncio
import ctypes
import sys
from collections.abc import Callable

from glm_portable.serve.exchange import Exchange

LARGE = 2**20
"""Bytes of a body; a window of 131,072 tokens of prose has about half as many."""

DELAY_S = 5.0
"""So seldom at the most: it takes up to 0.1 s, in which threads that ask for memory may wait."""


def _none() -> None:
    """The other C libraries give memory back by themselves, or cannot be asked to."""


def trimmer() -> Callable[[], object]:
    """glibc's malloc_trim(3), which other threads need not wait for."""
    library = ctypes.CDLL(None) if sys.platform == "linux" else None
    trim = getattr(library, "malloc_trim", None)
    return _none if trim is None else lambda: trim(0)


class Trimming:
    """Calls `trim` on another thread some time after a large request; on the event loop alone."""

    def __init__(self, trim: Callable[[], object]) -> None:
        self._trim, self._planned = trim, False

    def after(self, exchange: Exchange) -> None:
        """A request has ended."""
        if exchange.body_bytes >= LARGE and not self._planned:
            self._planned = True
            asyncio.get_running_loop().call_later(DELAY_S, self._start)

    def _start(self) -> None:
        self._planned = False
        asyncio.get_running_loop().run_in_executor(None, self._trim)
