"""Whether a process grew under load: a straight line through its resident memory."""

import asyncio
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from glm_portable.errors import UsageError

_EVERY_S = 1.0


def resident_mib(pid: int) -> float:
    """VmRSS of a process; see proc(5). Raises UsageError."""
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    except OSError:
        raise UsageError(f"--pid {pid}: there is no such process here.") from None
    return int(status.partition("VmRSS:")[2].split()[0]) / 1024


@dataclass
class Memory:
    """Sizes in MiB, and when they were, in seconds."""

    times: list[float] = field(default_factory=list)
    sizes: list[float] = field(default_factory=list)

    async def watch(self, pid: int) -> None:
        """Take sizes until cancelled."""
        begin = time.perf_counter()
        while True:
            self.times.append(time.perf_counter() - begin)
            self.sizes.append(resident_mib(pid))
            await asyncio.sleep(_EVERY_S)

    def drift(self, warm_up: float) -> float:
        """Growth by the least-squares line from `warm_up` seconds on, as a share of its start."""
        kept = [(t, s) for t, s in zip(self.times, self.sizes, strict=True) if t >= warm_up]
        if len(kept) < 2:
            return 0.0
        times, sizes = np.array(kept).T
        slope, start = np.polyfit(times - times[0], sizes, 1)
        return float(slope * (times[-1] - times[0]) / start)
