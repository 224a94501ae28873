"""How long calls take on the device."""

from collections.abc import Callable, Sequence
from statistics import median
from typing import Protocol

import torch

WARM_UP = 3
FLUSH_BYTES = 512 * 2**20
"""More than any cache of these GPUs holds (256 MB on MI300)."""


class Clock(Protocol):
    """The median microseconds of each call, of `rounds` in which the calls take turns."""

    def __call__(self, calls: Sequence[Callable[[], object]], rounds: int) -> list[float]: ...


class DeviceClock:
    """Times by the device's own events.

    The calls take turns, so that a change of the clock rate meets all of them; before each one
    the caches are overwritten, as in a model between two uses of a layer's weights. A median does
    not move with single outliers.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._flush = torch.empty(FLUSH_BYTES, dtype=torch.uint8, device=device)

    def __call__(self, calls: Sequence[Callable[[], object]], rounds: int) -> list[float]:
        for call in calls:
            for _ in range(WARM_UP):
                call()
        torch.accelerator.synchronize(self._device)
        times: list[list[float]] = [[] for _ in calls]
        for _ in range(rounds):
            events = []
            for call in calls:
                self._flush.zero_()
                begin, end = (torch.Event(self._device, enable_timing=True) for _ in range(2))
                begin.record()
                call()
                end.record()
                events.append((begin, end))
            torch.accelerator.synchronize(self._device)
            for own, (begin, end) in zip(times, events, strict=True):
                own.append(begin.elapsed_time(end) * 1000)
        return [median(own) for own in times]
