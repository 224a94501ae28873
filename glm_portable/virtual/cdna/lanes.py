"""Lane masks and 64-lane vectors.

A mask is a Python int with bit i for lane i, as in EXEC and VCC, or 64 booleans.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

LANES = 64
ALL = (1 << LANES) - 1
LANE: NDArray[np.int64] = np.arange(LANES)

Vector = NDArray[Any]
"""One value a lane: shape (64,)."""
Words = NDArray[np.uint32]
Booleans = NDArray[np.bool_]


def to_booleans(mask: int) -> Booleans:
    packed = np.frombuffer(mask.to_bytes(8, "little"), np.uint8)
    return np.unpackbits(packed, bitorder="little").view(np.bool_)


def to_mask(lanes: Booleans) -> int:
    return int.from_bytes(np.packbits(lanes, bitorder="little").tobytes(), "little")


def first_lane(lanes: Booleans) -> int:
    return int(np.argmax(lanes))


def signed(value: int, width: int) -> int:
    """The two's complement value of a `width`-bit pattern."""
    return value - (1 << width) if value >> (width - 1) & 1 else value
