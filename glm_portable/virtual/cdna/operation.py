"""The form of a table entry for a vector operation."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Operation:
    """A function of 64-lane arrays and its signature, "<sources>><results>", a letter each.

    u, i, f: a register as uint32, int32, float32; b: uint32 that takes float's -x and |x|;
    U, I: a register pair as uint64, int64;
    m: a lane mask, as booleans; M: a lane mask as result. Several results: a tuple.
    reads_destination: the destination is also the last source. upward: in 64 bits, information
    moves only towards higher bits, so that the low word does not depend on high words.
    clamped: the function under the modifier clamp.
    """

    function: Callable[..., Any]
    signature: str
    reads_destination: bool = False
    upward: bool = False
    clamped: Callable[..., Any] | None = None

    @property
    def sources(self) -> str:
        return self.signature.split(">")[0]

    @property
    def results(self) -> str:
        return self.signature.split(">")[1]
