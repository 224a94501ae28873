"""Where a number is drawn: percent along an axis, logarithmic or linear."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from glm_portable.verify.report.text import figure

EDGE = 3.0
"""Percent at both ends, for zero and for infinite."""


@dataclass(frozen=True)
class Tick:
    at: float
    label: str


@dataclass(frozen=True)
class Log:
    """Whole decades, 10**low to 10**high. Zero is at the very left, infinite at the very right."""

    low: int
    high: int

    @classmethod
    def over(cls, values: Iterable[float], *always: float) -> "Log":
        """Wide enough for all positive finite values and those of `always`."""
        logs = [math.log10(v) for v in (*values, *always) if v > 0 and math.isfinite(v)] or [0.0]
        low, high = math.floor(min(logs)), math.ceil(max(logs))
        return cls(low, max(high, low + 1))

    def at(self, value: float) -> float:
        """Percent along the axis. NaN is as bad as infinite."""
        if value <= 0:
            return 0.0
        if not math.isfinite(value):
            return 100.0
        share = (math.log10(value) - self.low) / (self.high - self.low)
        return EDGE + min(max(share, 0.0), 1.0) * (100 - 2 * EDGE)

    @property
    def ticks(self) -> list[Tick]:
        """At most seven decades, 1 among them if it is within."""
        step = -(-(self.high - self.low) // 6)
        shown = [n for n in range(self.low, self.high + 1) if n % step == 0]
        return [Tick(self.at(10.0**n), _power(n)) for n in shown]


@dataclass(frozen=True)
class Linear:
    """0 to top."""

    top: float

    @classmethod
    def over(cls, values: Iterable[float]) -> "Linear":
        return cls(max((v for v in values if math.isfinite(v)), default=1.0) or 1.0)

    def at(self, value: float) -> float:
        """Percent along the axis. NaN is as bad as infinite."""
        return 100 * min(max(value / self.top, 0.0), 1.0) if math.isfinite(value) else 100.0

    @property
    def ticks(self) -> list[Tick]:
        return [Tick(100 * share, figure(self.top * share)) for share in (0.0, 0.5, 1.0)]


def _power(n: int) -> str:
    return f"{10**n:g}" if 0 <= n < 4 else f"{10.0**n:g}" if -4 < n < 0 else f"1e{n}"
