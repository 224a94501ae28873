"""How many requests a minute each caller may send: token buckets."""

import time
from collections import OrderedDict
from collections.abc import Callable

from starlette.types import ASGIApp, Receive, Scope, Send

from glm_portable.serve.errors import refuse, too_many

MAX_CALLERS = 10_000
"""Remembered at once. Who is forgotten starts anew, with a full bucket."""


class Buckets:
    """A bucket of `per_minute` tokens for each caller, refilled evenly."""

    def __init__(self, per_minute: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._most, self._per_second, self._clock = per_minute, per_minute / 60, clock
        self._levels: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, caller: str) -> float:
        """Take a token: 0, or the seconds until there is one."""
        now = self._clock()
        level, then = self._levels.pop(caller, (float(self._most), now))
        level = min(self._most, level + (now - then) * self._per_second)
        taken = level >= 1
        self._levels[caller] = (level - 1 if taken else level, now)
        if len(self._levels) > MAX_CALLERS:
            self._levels.popitem(last=False)  # the one not seen for longest
        return 0.0 if taken else (1 - level) / self._per_second


class RateLimit:
    """Refuses a POST of a caller, an API key or else an address, that sends too many."""

    def __init__(self, app: ASGIApp, per_minute: int) -> None:
        self._app, self._per_minute, self._buckets = app, per_minute, Buckets(per_minute)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] == "POST":
            wait_s = self._buckets.take(_caller(scope))
            if wait_s > 0:
                message = f"More than {self._per_minute} requests a minute; wait and send it again."
                error = too_many(message, "rate_limit_exceeded", wait_s)
                return await refuse(error, scope, receive, send)
        await self._app(scope, receive, send)


def _caller(scope: Scope) -> str:
    client = scope.get("client") or ("unknown",)
    return str(scope.get("api_key") or client[0])
