"""The state of one wave: registers, what of them is undefined, and memory operations under way.

Beside each register stands a mask of what was never defined: lanes of a vector register, bits of
a scalar one. Masks travel with values through instructions (as Valgrind's Memcheck does) and fault
where an undefined value decides something: an address, a branch, EXEC, a store.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from glm_portable.virtual.cdna.chips import Chip
from glm_portable.virtual.cdna.faults import Fault, MissingWait, UndefinedValue
from glm_portable.virtual.cdna.lanes import ALL, LANES, Booleans, Words, to_booleans
from glm_portable.virtual.cdna.lds import LocalMemory
from glm_portable.virtual.cdna.memory import GlobalMemory
from glm_portable.virtual.cdna.operands import AGPR, EXEC, REGISTERS, SGPR, VCC

Counter = Literal["vector", "lds", "scalar"]
M32 = 0xFFFFFFFF
POISON = 0xFFC0DEAD  # a NaN, as an undefined value that nothing catches had better spoil the result


@dataclass(eq=False)
class Pending:
    """A memory operation under way; `land` makes its effect visible. counter: who counts it."""

    counter: Counter
    land: Callable[[], None]
    registers: tuple[int, ...]
    instruction: int


@dataclass
class Workgroup:
    """What the waves of a workgroup share. epoch: barriers passed, plus one."""

    index: tuple[int, int, int]
    memory: GlobalMemory
    lds: LocalMemory
    epoch: int = 1


@dataclass(eq=False)
class Wave:
    """The architectural state of a wave (CDNA3 ISA section 3), with every register undefined."""

    index: int
    workgroup: Workgroup
    chip: Chip
    pc: int = 0
    scc: int = 0
    scc_undefined: bool = True
    fp16_overflow: bool = False  # MODE.FP16_OVFL: FP8 conversions clamp instead of overflowing
    status: Literal["running", "barrier", "ended"] = "running"
    vectors: Words = field(
        default_factory=lambda: np.full((2 * AGPR, LANES), POISON, np.uint32), repr=False
    )
    scalars: list[int] = field(default_factory=lambda: [POISON] * (REGISTERS - SGPR), repr=False)
    undefined: list[int] = field(
        default_factory=lambda: [ALL] * SGPR + [M32] * (REGISTERS - SGPR), repr=False
    )
    under_way: dict[int, Pending] = field(default_factory=dict)
    vector_queue: deque[Pending] = field(default_factory=deque)
    lgkm_queue: deque[Pending] = field(default_factory=deque)

    def __post_init__(self) -> None:
        self.write_scalars(EXEC, 2, ALL)

    # Scalar registers

    def read_scalars(self, register: int, count: int) -> int:
        """`count` consecutive scalar registers as one unsigned integer."""
        at = register - SGPR
        if count == 1:
            return self.scalars[at]
        return sum(self.scalars[at + i] << (32 * i) for i in range(count))

    def write_scalars(self, register: int, count: int, value: int, undefined: int = 0) -> None:
        for i in range(count):
            self.scalars[register - SGPR + i] = value >> (32 * i) & M32
            self.undefined[register + i] = undefined >> (32 * i) & M32
        if register + count > EXEC:
            self._execute_mask_changed()

    def undefined_bits(self, register: int, count: int) -> int:
        return sum(self.undefined[register + i] << (32 * i) for i in range(count))

    def _execute_mask_changed(self) -> None:
        if self.undefined[EXEC] or self.undefined[EXEC + 1]:
            raise UndefinedValue("EXEC is set from an undefined value")
        self.exec = self.read_scalars(EXEC, 2)
        self.lanes: Booleans = to_booleans(self.exec)

    @property
    def vcc(self) -> int:
        return self.read_scalars(VCC, 2)

    # Vector registers

    def write_vector(
        self, register: int, values: Words, undefined: int = 0, enable: int = ALL
    ) -> None:
        """Write the lanes that EXEC and `enable` enable."""
        mask = self.exec & enable
        if mask == ALL:
            self.vectors[register] = values
            self.undefined[register] = undefined
        else:
            lanes = self.lanes if enable == ALL else to_booleans(mask)
            np.copyto(self.vectors[register], values, where=lanes)
            self.undefined[register] = self.undefined[register] & ~mask | undefined & mask

    def undefined_lanes(self, vectors: tuple[int, ...], scalars: tuple[int, ...] = ()) -> int:
        """The lanes in which a result of these registers is undefined."""
        undefined = self.undefined
        lanes = 0
        for register in vectors:
            lanes |= undefined[register]
        for register in scalars:
            if undefined[register]:
                return ALL
        return lanes

    def require_defined(self, what: str, registers: range, lanes: int | None = None) -> None:
        """Raise UndefinedValue where `what` is undefined in one of `lanes` (default: EXEC)."""
        for register in registers:
            bits = self.undefined[register]
            if register < SGPR:
                bits &= self.exec if lanes is None else lanes
            if bits:
                lane = (bits & -bits).bit_length() - 1
                raise UndefinedValue(f"undefined {what}", lane if register < SGPR else None)

    # Memory operations under way

    def issue(self, counter: Counter, registers: tuple[int, ...], land: Callable[[], None]) -> None:
        """Start a memory operation that writes `registers` when it lands.

        Loads of one kind return in order, so that one may follow another into the same register.
        """
        pending = Pending(counter, land, registers, self.pc - 1)
        for register in registers:
            before = self.under_way.get(register)
            if before is not None and (before.counter != counter or counter == "scalar"):
                raise MissingWait("a register is loaded again while a load of it is under way")
            self.under_way[register] = pending
        (self.vector_queue if counter == "vector" else self.lgkm_queue).append(pending)

    def land_vector(self, outstanding: int) -> None:
        """s_waitcnt vmcnt(outstanding): land, oldest first, until that few are under way."""
        while len(self.vector_queue) > outstanding:
            self._land(self.vector_queue.popleft())

    def land_lgkm(self, outstanding: int) -> None:
        """s_waitcnt lgkmcnt(outstanding).

        LDS operations return in order, scalar loads in any order (ISA section 4.4): of a mixture
        only what must have landed whichever scalar loads did is landed.
        """
        scalar = sum(p.counter == "scalar" for p in self.lgkm_queue)
        certain = len(self.lgkm_queue) - outstanding - (scalar if outstanding else 0)
        for pending in list(self.lgkm_queue):
            if certain > 0 and (outstanding == 0 or pending.counter == "lds"):
                self.lgkm_queue.remove(pending)
                self._land(pending)
                certain -= 1

    def _land(self, pending: Pending) -> None:
        for register in pending.registers:
            if self.under_way.get(register) is pending:
                del self.under_way[register]
        try:
            pending.land()
        except Fault as fault:
            fault.index = pending.instruction
            raise
