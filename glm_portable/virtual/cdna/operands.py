"""Operands of the assembler's text.

Registers get one numbering, so that one table serves them all: VGPR 0-255, AGPR 256-511,
SGPR 512 and up, the latter with the encodings of CDNA3 ISA section 5.1 (VCC 106, M0 124, EXEC 126).
"""

import re
import struct
from dataclasses import dataclass
from typing import Literal

from glm_portable.virtual.cdna.faults import UnsupportedInstruction

Kind = Literal["vector", "scalar", "integer", "float", "off", "symbol"]

AGPR, SGPR = 256, 512
VCC, M0, EXEC = SGPR + 106, SGPR + 124, SGPR + 126
REGISTERS = SGPR + 128

_SPECIAL = {
    "vcc": (VCC, 2),
    "vcc_lo": (VCC, 1),
    "vcc_hi": (VCC + 1, 1),
    "m0": (M0, 1),
    "exec": (EXEC, 2),
    "exec_lo": (EXEC, 1),
    "exec_hi": (EXEC + 1, 1),
}
_FIRST = {"v": 0, "a": AGPR, "s": SGPR}
_REGISTER = re.compile(r"([vas])(\d+)|([vas])\[(\d+):(\d+)\]")
_INTEGER = re.compile(r"-?(0x[0-9a-fA-F]+|\d+)")
_FLOAT = re.compile(r"-?\d+\.\d+(e[-+]?\d+)?")


@dataclass(frozen=True)
class Operand:
    """One operand. register and count: for registers. value: of an integer or float constant."""

    kind: Kind
    text: str
    register: int = 0
    count: int = 1
    value: float = 0
    negate: bool = False
    absolute: bool = False

    @property
    def registers(self) -> range:
        return range(self.register, self.register + self.count * self.is_register)

    @property
    def is_register(self) -> bool:
        return self.kind in ("vector", "scalar")

    def bits(self, width: int) -> int:
        """A constant as the `width`-bit pattern that the instruction sees (ISA section 5.1)."""
        if self.kind == "integer":
            return int(self.value) & ((1 << width) - 1)
        if self.kind == "float" and width in (32, 64):
            packed = struct.pack("<f" if width == 32 else "<d", self.value)
            return int.from_bytes(packed, "little")
        raise UnsupportedInstruction(f"operand {self.text!r} is not a {width}-bit constant")


def parse_operand(text: str) -> Operand:
    """One operand with its input modifiers (-x, |x|, -|x|, neg(x), abs(x)); else a symbol."""
    body, negate, absolute = _input_modifiers(text)
    if match := _REGISTER.fullmatch(body):
        bank, only, banks, first, last = match.groups()
        start = int(only or first)
        count = int(last) - start + 1 if last else 1
        return _register(text, _FIRST[bank or banks] + start, count, negate, absolute)
    if body in _SPECIAL:
        return _register(text, *_SPECIAL[body], negate, absolute)
    if _INTEGER.fullmatch(text):
        return Operand("integer", text, value=int(text, 0))
    if _FLOAT.fullmatch(text):
        return Operand("float", text, value=float(text))
    return Operand("off" if text == "off" else "symbol", text)


def _input_modifiers(text: str) -> tuple[str, bool, bool]:
    negate = absolute = False
    if text.startswith("neg(") and text.endswith(")"):
        text, negate = text[4:-1], True
    elif text.startswith("-"):
        text, negate = text[1:], True
    if text.startswith("abs(") and text.endswith(")"):
        text, absolute = text[4:-1], True
    elif text.startswith("|") and text.endswith("|"):
        text, absolute = text[1:-1], True
    return text, negate, absolute


def _register(text: str, first: int, count: int, negate: bool, absolute: bool) -> Operand:
    kind: Kind = "scalar" if first >= SGPR else "vector"
    return Operand(kind, text, first, count, negate=negate, absolute=absolute)
