"""The form of a table entry for a vector operation."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Operation:
    """A function of 64-lane arrays and its signature, "<sources>><results>", a letter each.

    u, i, f: a register as uint32, int32, float32; b: uint32 that takes float's -x and |x|;
    w, j, h: 16 bits of a register as uint32, sign-extended int32, float16; p: as w, but takes
    float16's -x and |x|; U, I: a register pair as uint64, int64;
    m: a lane mask, as booleans; M: a lane mask as result. Several results: a tuple.
    reads_destination: the destination is also the last source. upward: in 64 bits, information
    moves only towards higher bits, so that the low word does not depend on high words.
    clamped: the function under the modifier clamp. saturated: the function while MODE.FP16_OVFL is
    set. keeps_upper: a 16-bit result leaves the rest of its register as it was, and is not
    extended by zeros.
    """

    function: Callable[..., Any]
    signature: str
    reads_destination: bool = False
    upward: bool = False
    clamped: Callable[..., Any] | None = None
    saturated: Callable[..., Any] | None = None
    keeps_upper: bool = False

    @property
    def sources(self) -> str:
        return self.signature.split(">")[0]

    @property
    def results(self) -> str:
        return self.signature.split(">")[1]

    @property
    def halves(self) -> bool:
        """Whether op_sel may name halves of its registers."""
        return not set("wjhp").isdisjoint(self.signature)
