"""What a simulated kernel can do wrong, each as an exception that says where."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Site:
    """Where it happened: the instruction's text and line in the assembly, and who ran it."""

    text: str
    line: int
    workgroup: tuple[int, int, int]
    wave: int

    def __str__(self) -> str:
        return f"line {self.line}: {self.text} (workgroup {self.workgroup}, wave {self.wave})"


class Fault(Exception):
    """The program did what the hardware leaves undefined, or refuses.

    site: None only where no instruction is to blame. lane: the first lane at fault. address: a
    byte address of global memory or an offset into LDS. index: the instruction to blame, if it is
    not the one being executed but a memory operation that lands late.
    """

    def __init__(self, reason: str, lane: int | None = None, address: int | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.lane = lane
        self.address = address
        self.site: Site | None = None
        self.index: int | None = None

    def __str__(self) -> str:
        detail = "" if self.lane is None else f", lane {self.lane}"
        if self.address is not None:
            detail += f", address {self.address:#x}"
        return f"{self.reason}{detail}" + (f" at {self.site}" if self.site else "")


class UnsupportedInstruction(Fault):
    """A mnemonic, operand or modifier whose meaning is not implemented here."""


class OutOfBounds(Fault):
    """A global memory access outside every tensor of the launch, or a store to read-only memory."""


class UndefinedValue(Fault):
    """A value that no instruction defined is used as an address, a condition or stored data."""


class MissingWait(Fault):
    """A register is used while a memory operation that writes it may still be under way."""


class LdsOutOfBounds(Fault):
    """An LDS access beyond the workgroup's allocation."""


class UnwrittenLds(Fault):
    """A read of LDS bytes that nothing has written."""


class LdsRace(Fault):
    """Two waves touch the same LDS bytes, at least one writing, with no barrier between."""


class Hang(Fault):
    """The program ran past the limit of instructions."""
