"""A bounded memory of what was made of texts."""

import threading
from collections import OrderedDict
from typing import Generic, TypeVar

MAX_KEPT = 256
MAX_KEPT_CHARACTERS = 16 * 2**20

T = TypeVar("T")


class Kept(Generic[T]):
    """What was made of texts; the least recently used go first. Thread-safe."""

    def __init__(self) -> None:
        self._kept: OrderedDict[str, T] = OrderedDict()
        self._characters = 0
        self._lock = threading.Lock()

    def find(self, text: str) -> T | None:
        with self._lock:
            if text in self._kept:
                self._kept.move_to_end(text)
            return self._kept.get(text)

    def keep(self, text: str, result: T) -> None:
        """`text` must not be kept yet."""
        with self._lock:
            self._kept[text] = result
            self._characters += len(text)
            while len(self._kept) > MAX_KEPT or self._characters > MAX_KEPT_CHARACTERS:
                self._characters -= len(self._kept.popitem(last=False)[0])

    def __len__(self) -> int:
        return len(self._kept)
