"""Fewer and larger deltas, for a server whose clients need not see every token by itself."""

from collections.abc import Callable

from glm_portable.engine.types import Delta, joined


class Gathering:
    """Hands on a choice's first delta at once, then `interval` tokens or more together, and with
    its last delta the rest.
    """

    def __init__(self, interval: int, on_delta: Callable[[Delta], None]) -> None:
        self._interval, self._on_delta = interval, on_delta
        self._parts: list[Delta] = []
        self._missing = 0  # tokens, of the next to be handed on

    def receive(self, delta: Delta) -> None:
        if delta.finish_reason in ("abort", "error"):  # no part of the answer
            self._flush()
            return self._on_delta(delta)
        self._missing -= len(delta.token_ids)
        ready = self._missing <= 0 or delta.finish_reason is not None
        if ready and not self._parts:  # unlike what is joined, a first delta tells of the prompt
            self._missing = self._interval
            return self._on_delta(delta)
        self._parts += delta.parts or (delta,)
        if ready:
            self._flush()

    def _flush(self) -> None:
        parts, self._parts, self._missing = self._parts, [], self._interval
        if parts:
            self._on_delta(joined(parts))
