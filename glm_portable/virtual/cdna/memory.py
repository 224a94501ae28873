"""Global memory: the tensors of a launch, far apart, each access checked against their bounds."""

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from glm_portable.virtual.cdna.faults import OutOfBounds
from glm_portable.virtual.cdna.lanes import Booleans

Bytes = NDArray[np.uint8]
Addresses = NDArray[np.int64]
"""One byte address for each lane that takes part, shape (n,)."""

_BASE = 1 << 40
_SPACING = 1 << 36  # more than a 32-bit offset can bridge: a stray access meets no other buffer


@dataclass(frozen=True)
class Segment:
    """Bytes that may be accessed at [start, start + len(data))."""

    start: int
    data: Bytes
    writable: bool

    @property
    def stop(self) -> int:
        return self.start + self.data.size


class GlobalMemory:
    """Addresses of buffers and what may be accessed in them; the bytes stay the caller's own."""

    def __init__(self) -> None:
        self._segments: list[Segment] = []
        self._starts: list[int] = []
        self._next = _BASE

    def place(self, data: Bytes, spans: list[tuple[int, int]], writable: bool = True) -> int:
        """Give a buffer an address and return it.

        data: shape (bytes,). spans: the byte ranges of it that may be accessed. The address
        agrees with the buffer's own in the host's memory modulo 256, as alignment is compiled in.
        """
        base = self._next + data.ctypes.data % 256
        self._next += _SPACING + (data.size & ~0xFF)
        for start, stop in merged(spans):
            self._segments.append(Segment(base + start, data[start:stop], writable))
            self._starts.append(base + start)
        return base

    def check(self, addresses: Addresses, width: int, lanes: Booleans, store: bool = False) -> None:
        """Raise OutOfBounds unless `width` bytes at each address are there. lanes: the senders."""
        for segment, _ in self._by_segment(addresses, width, lanes):
            if store and not segment.writable:
                raise OutOfBounds("store to read-only memory", address=int(addresses[0]))

    def read(self, addresses: Addresses, width: int) -> Bytes:
        """Shape (n, width)."""
        result = np.empty((len(addresses), width), np.uint8)
        for segment, chosen in self._by_segment(addresses, width, None):
            offsets = addresses[chosen] - segment.start
            result[chosen] = Rows(offsets, width).of(segment.data)
        return result

    def write(self, addresses: Addresses, values: Bytes) -> None:
        """values: shape (n, width). Of lanes that write one address the last one wins."""
        for segment, chosen in self._by_segment(addresses, values.shape[1], None):
            offsets = addresses[chosen] - segment.start
            Rows(offsets, values.shape[1]).put(segment.data, values[chosen])

    def _by_segment(
        self, addresses: Addresses, width: int, lanes: Booleans | None
    ) -> Iterator[tuple[Segment, Booleans | slice]]:
        low, high = int(addresses.min()), int(addresses.max())
        segment = self._at(low)
        if segment is not None and segment.start <= low and high + width <= segment.stop:
            yield segment, slice(None)
            return
        rest = np.ones(len(addresses), np.bool_)
        while rest.any():
            first = int(np.argmax(rest))
            address = int(addresses[first])
            segment = self._at(address)
            if segment is None or address + width > segment.stop:
                lane = None if lanes is None else int(np.flatnonzero(lanes)[first])
                raise OutOfBounds(f"{width} bytes outside every tensor", lane, address)
            here = (addresses >= segment.start) & (addresses + width <= segment.stop) & rest
            rest &= ~here
            yield segment, here

    def _at(self, address: int) -> Segment | None:
        at = bisect_right(self._starts, address) - 1
        return self._segments[at] if at >= 0 else None


class Rows:
    """`width` bytes at each offset of byte-indexed arrays, by whole rows where all are aligned."""

    def __init__(self, offsets: Addresses, width: int) -> None:
        self._width = width if width in (1, 2, 4, 8, 16) and not (offsets % width).any() else 0
        self._index = offsets // width if self._width else offsets[:, None] + np.arange(width)

    def of(self, array: NDArray[Any]) -> NDArray[Any]:
        """A copy of the rows; shape (n, width)."""
        return self._rows(array)[self._index]

    def put(self, array: NDArray[Any], values: Any) -> None:
        """Assign rows (n, width), or what broadcasts to them."""
        self._rows(array)[self._index] = values

    def _rows(self, array: NDArray[Any]) -> NDArray[Any]:
        if not self._width:
            return array
        return array[: array.size // self._width * self._width].reshape(-1, self._width)


def merged(spans: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """The union of half-open ranges, as disjoint ranges in order."""
    union: list[tuple[int, int]] = []
    for start, stop in sorted(spans):
        if union and start <= union[-1][1]:
            union[-1] = (union[-1][0], max(stop, union[-1][1]))
        else:
            union.append((start, stop))
    return union
