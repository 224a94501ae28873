"""A workgroup's LDS: its bytes, which of them are written, and who touched each in which epoch.

An access of one wave that begins in epoch b (one plus the barriers passed when it is issued) and
ends in epoch e (when a wait lands it) races with every access of another wave to the same byte, one
of the two writing, that ended in epoch b or later: no barrier orders them.

Waves may write the same value to a byte, and each read what it wrote itself: whichever comes first,
all see that value. Triton does so where waves hold copies of one tile.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from glm_portable.virtual.cdna.faults import LdsOutOfBounds, LdsRace, UnwrittenLds
from glm_portable.virtual.cdna.lanes import Booleans
from glm_portable.virtual.cdna.memory import Addresses, Bytes, Rows

_ATOMIC = 16  # an access is recorded as the wave's bit, an atomic one as the bit this much higher,
_EPOCH = 1 << 32  # beside those of other waves in its epoch, and the epoch in the upper half
_WAVES = (1 << 16) - 1
_UNWRITTEN, _UNDEFINED = 0, 2  # of a byte; 1: written

Records = NDArray[np.int64]


class LocalMemory:
    """`size` bytes, none of them written."""

    def __init__(self, size: int) -> None:
        self.size = size
        padded = -(-max(size, 1) // 16) * 16
        self.data = np.full(padded, 0xFF, np.uint8)
        self._state = np.zeros(padded, np.uint8)
        self._written = np.zeros(padded, np.int64)
        self._read = np.zeros(padded, np.int64)

    def check(self, offsets: Addresses, width: int, lanes: Booleans) -> None:
        """Raise LdsOutOfBounds unless each access is inside the allocation."""
        bad = (offsets < 0) | (offsets + width > self.size)
        if bad.any():
            first = int(np.argmax(bad))
            lane = int(np.flatnonzero(lanes)[first])
            reason = f"{width} bytes outside the {self.size} bytes of LDS"
            raise LdsOutOfBounds(reason, lane, int(offsets[first]))

    def read(
        self, offsets: Addresses, width: int, wave: int, began: int, ended: int
    ) -> tuple[Bytes, Booleans]:
        """Bytes, shape (n, width), and the accesses that contain an undefined one, shape (n,)."""
        view, bit = Rows(offsets, width), 1 << wave
        written, state = view.of(self._written), view.of(self._state)
        stranger = (written & _WAVES != 0) & (written & bit == 0)
        races = (written >= began * _EPOCH) & (stranger | _others_atomic(written, bit))
        self._refuse("reads what another wave writes", offsets, races, written, wave)
        if (state == _UNWRITTEN).any():
            row = int(np.argmax((state == _UNWRITTEN).any(-1)))
            raise UnwrittenLds("read of unwritten LDS", address=int(offsets[row]))
        view.put(self._read, _recorded(view.of(self._read), ended, bit))
        return view.of(self.data), (state == _UNDEFINED).any(-1)

    def write(
        self,
        offsets: Addresses,
        values: Bytes,
        undefined: Booleans | None,
        wave: int,
        began: int,
        ended: int,
    ) -> None:
        """values: shape (n, width). undefined: shape (n,); None: nowhere."""
        view, bit = Rows(offsets, values.shape[1]), 1 << wave
        written, read = view.of(self._written), view.of(self._read)
        since, others = began * _EPOCH, _WAVES & ~bit
        differ = (written & others != 0) & (view.of(self.data) != values)
        races = (written >= since) & (differ | _others_atomic(written, bit))
        self._refuse("overwrites what another wave writes", offsets, races, written, wave)
        races = (read >= since) & (read & others & ~np.where(written >= since, written, 0) != 0)
        self._refuse("overwrites what another wave reads", offsets, races, read, wave)
        view.put(self._written, _recorded(written, ended, bit))
        marks = np.uint8(1) if undefined is None else np.where(undefined, _UNDEFINED, 1)[:, None]
        view.put(self._state, marks)
        view.put(self.data, values)

    def update(
        self,
        offset: Addresses,
        width: int,
        change: Callable[[Bytes], Bytes],
        wave: int,
        began: int,
        ended: int,
    ) -> tuple[Bytes, bool]:
        """An atomic access to one place, shape (1,): what was there, and if that is undefined.

        Atomic accesses do not race with each other."""
        view, bit = Rows(offset, width), 1 << wave
        written, read, state = (view.of(a) for a in (self._written, self._read, self._state))
        since, others = began * _EPOCH, _WAVES & ~bit
        for records, what in ((written, "writes"), (read, "reads")):
            races = (records >= since) & (records & others != 0)
            self._refuse(f"updates what another wave {what}", offset, races, records, wave)
        if (state == _UNWRITTEN).any():
            raise UnwrittenLds("atomic update of unwritten LDS", address=int(offset[0]))
        before = view.of(self.data)[0]
        view.put(self._written, _recorded(written, ended, bit << _ATOMIC))
        view.put(self.data, change(before))
        return before, bool((state == _UNDEFINED).any())

    def _refuse(
        self, what: str, offsets: Addresses, races: Booleans, records: Records, wave: int
    ) -> None:
        """Raise LdsRace if there are races; records: the accesses raced with."""
        if races.any():
            row, column = (int(i) for i in np.argwhere(races)[0])
            record = int(records[row, column])
            others = (record | record >> _ATOMIC) & _WAVES & ~(1 << wave)
            whom = ", ".join(f"wave {i}" for i in range(16) if others >> i & 1)
            reason = f"wave {wave} {what} ({whom}) without a barrier"
            raise LdsRace(reason, address=int(offsets[row]) + column)


def _others_atomic(records: Records, bit: int) -> Booleans:
    others: Booleans = records >> _ATOMIC & _WAVES & ~bit != 0
    return others


def _recorded(before: Records, epoch: int, bit: int) -> Records:
    """A wave's access beside those of this epoch."""
    return np.where(before >= epoch * _EPOCH, before | bit, epoch * _EPOCH + bit)
