"""Whether the model's weights are what they were when they were first looked at."""

import logging
from collections import deque
from collections.abc import Callable
from typing import Protocol, runtime_checkable

from glm_portable.digest import Digests

log = logging.getLogger(__name__)

OnResult = Callable[[str | None], None]
"""Called with what is wrong, in words, or None."""


@runtime_checkable
class DigestedModel(Protocol):
    """What an examination needs of `glm_portable.model.Model`; a model without it holds nothing."""

    def digests(self, part: int) -> Digests: ...


class Examiner:
    """Compares all weights with the first time, in parts, so that steps go on between them.

    The first examination is that first time, and finds nothing. Used on the engine's thread.
    """

    def __init__(self, model: object) -> None:
        self._digests: Callable[[int], Digests] = lambda part: {}
        if isinstance(model, DigestedModel):
            self._digests = model.digests
        self._first: list[Digests] = []
        self._waiting: deque[OnResult] = deque()
        self._part = 0

    @property
    def busy(self) -> bool:
        return bool(self._waiting)

    def add(self, on_result: OnResult) -> None:
        """Examine everything after those before it, and call on_result."""
        self._waiting.append(on_result)

    def advance(self) -> None:
        """Examine one part, if there is anything to do."""
        if not self._waiting:
            return
        try:
            now = self._digests(self._part)
        except Exception:
            log.exception("the weights could not be examined")
            self._end("the weights could not be examined; the server's log has the reason")
            return
        if self._part == len(self._first):
            self._first.append(now)
        name = _first_changed(self._first[self._part], now)
        if name is not None:
            self._end(f"{name} has changed since the start")
        elif not now:
            self._end(None)
        else:
            self._part += 1

    def close(self) -> None:
        """End what has not ended."""
        while self._waiting:
            self._end("the engine has ended")

    def _end(self, fault: str | None) -> None:
        self._part = 0
        self._waiting.popleft()(fault)


def _first_changed(then: Digests, now: Digests) -> str | None:
    """The name of a tensor, and which of its rank's experts in it."""
    for name, before in then.items():
        for expert, (old, new) in enumerate(zip(before, now[name], strict=True)):
            if old != new:
                return name if len(before) == 1 else f"expert {expert} of {name}"
    return None
