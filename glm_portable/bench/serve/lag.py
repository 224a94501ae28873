"""Whether the client kept up: how late its event loop was, and how busy its processor."""

import asyncio
import time
from dataclasses import dataclass, field

import numpy as np

_EVERY_S = 0.02
LATE_MS = 5.0
"""From here on an event may have been noted that much late."""
BUSY = 0.8


@dataclass
class Lag:
    """How late a timer of the loop was, again and again, and the client's own load.

    Used as `async with` around the run.
    """

    late: list[float] = field(default_factory=list)
    cpu_share: float = 0.0
    cpu_s: float = 0.0

    async def __aenter__(self) -> "Lag":
        self._begin = time.perf_counter(), time.process_time()
        self._task = asyncio.create_task(self._watch())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()
        wall = time.perf_counter() - self._begin[0]
        self.cpu_s = time.process_time() - self._begin[1]
        self.cpu_share = self.cpu_s / wall if wall else 0.0

    async def _watch(self) -> None:
        while True:
            due = time.perf_counter() + _EVERY_S
            await asyncio.sleep(_EVERY_S)
            self.late.append(max(0.0, time.perf_counter() - due))

    @property
    def p99_ms(self) -> float:
        return float(np.percentile(self.late or [0.0], 99)) * 1000

    def warning(self) -> str | None:
        """Why the figures may be the client's and not the server's."""
        if self.p99_ms > LATE_MS:
            reason = f"its event loop was up to {self.p99_ms:.0f} ms late (99 %)"
        elif self.cpu_share > BUSY:
            reason = f"it used {self.cpu_share:.0%} of a core"
        else:
            return None
        return (
            f"the client may be what was measured: {reason}. Give it an idle core, or share the "
            "load among several clients."
        )
