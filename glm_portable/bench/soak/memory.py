"""Whether a server grew under load: a straight line through its resident memory."""

import asyncio
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from glm_portable.errors import UsageError

_EVERY_S = 1.0


def resident_mib(pid: int) -> float:
    """VmRSS of a process and of the engine and the ranks that it started; see proc(5).

    Raises UsageError if there is no such process.
    """
    own = _resident_mib(pid)
    if own is None:
        raise UsageError(f"--pid {pid}: there is no such process here.")
    return own + sum(_resident_mib(other) or 0.0 for other in _started_by(pid))


def _resident_mib(pid: int) -> float | None:
    """None if it has ended."""
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    except OSError:
        return None
    size = status.partition("VmRSS:")[2]
    return int(size.split()[0]) / 1024 if size else None  # one that is ending has none


def _started_by(pid: int) -> Iterator[int]:
    """Its parts, and theirs; not the process that tries grammars, which ends and begins anew."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()
    except OSError:
        return
    for child in map(int, children):
        try:
            command = Path(f"/proc/{child}/cmdline").read_bytes()
        except OSError:
            continue
        if b"multiprocessing.spawn" in command:
            yield child
            yield from _started_by(child)


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
