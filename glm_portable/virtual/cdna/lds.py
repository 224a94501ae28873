"""A workgroup's LDS: its bytes, which of them are written, and who touched each in which epoch.

An access of one wave that begins in epoch b (one plus the barriers passed when it is issued) and
ends in epoch e (when a wait lands it) races with every access of another wave to the same byte, one
of the two writing, that ended in epoch b or later: no barrier orders them.
"""

import numpy as np
from numpy.typing import NDArray

from glm_portable.virtual.cdna.faults import LdsOutOfBounds, LdsRace, UnwrittenLds
from glm_portable.virtual.cdna.lanes import Booleans
from glm_portable.virtual.cdna.memory import Addresses, Bytes, Rows

_SEVERAL = 255  # stands for more than one wave
_EPOCH = 256  # an access is recorded as epoch * 256 + wave + 1; 0: never
_UNWRITTEN, _UNDEFINED = 0, 2  # of a byte; 1: written


class LocalMemory:
    """`size` bytes, none of them written."""

    def __init__(self, size: int) -> None:
        self.size = size
        padded = -(-max(size, 1) // 16) * 16
        self.data = np.full(padded, 0xFF, np.uint8)
        self._state = np.zeros(padded, np.uint8)
        self._written = np.zeros(padded, np.int32)
        self._read = np.zeros(padded, np.int32)

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
        view = Rows(offsets, width)
        written, state = view.of(self._written), view.of(self._state)
        self._refuse_races("reads what another wave writes", offsets, written, wave, began)
        if (state == _UNWRITTEN).any():
            row = int(np.argmax((state == _UNWRITTEN).any(-1)))
            raise UnwrittenLds("read of unwritten LDS", address=int(offsets[row]))
        mine = ended * _EPOCH + wave + 1
        before = view.of(self._read)
        shared = (before >= ended * _EPOCH) & (before != mine)
        view.put(self._read, np.where(shared, ended * _EPOCH + _SEVERAL, mine))
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
        view = Rows(offsets, values.shape[1])
        for record, what in ((self._written, "writes"), (self._read, "reads")):
            reason = f"overwrites what another wave {what}"
            self._refuse_races(reason, offsets, view.of(record), wave, began)
        view.put(self._written, np.int32(ended * _EPOCH + wave + 1))
        marks = np.uint8(1) if undefined is None else np.where(undefined, _UNDEFINED, 1)[:, None]
        view.put(self._state, marks)
        view.put(self.data, values)

    def _refuse_races(
        self, what: str, offsets: Addresses, records: NDArray[np.int32], wave: int, began: int
    ) -> None:
        races = (records >= began * _EPOCH) & (records % _EPOCH != wave + 1)
        if races.any():
            row, column = (int(i) for i in np.argwhere(races)[0])
            other = int(records[row, column]) % _EPOCH - 1
            whom = "several waves" if other == _SEVERAL - 1 else f"wave {other}"
            reason = f"wave {wave} {what} ({whom}) without a barrier"
            raise LdsRace(reason, address=int(offsets[row]) + column)
