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
FIRST_SPECIAL = SGPR + 102

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
_LAST = {"v": 255, "a": 255, "s": 101}  # s102 and up have other names, or are not there
_REGISTER = re.compile(r"([vas])(\d+)|([vas])\[(\d+):(\d+)\]")
_FLOAT_FORMATS = {16: "<e", 32: "<f", 64: "<d"}
_INTEGER = re.compile(r"-?(0x[0-9a-fA-F]+|\d+)")
_FLOAT = re.compile(r"-?\d+\.\d+(e[-+]?\d+)?")


@dataclass(frozen=True)
class Operand:
    """One operand. register and count: for registers. value: of an integer or float constant.
    extend: sext(), SDWA's sign extension of what it selects."""

    kind: Kind
    text: str
    register: int = 0
    count: int = 1
    value: float = 0
    negate: bool = False
    absolute: bool = False
    extend: bool = False

    @property
    def modified(self) -> bool:
        return self.negate or self.absolute or self.extend

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
        if self.kind == "float" and width in _FLOAT_FORMATS:
            return int.from_bytes(struct.pack(_FLOAT_FORMATS[width], self.value), "little")
        raise UnsupportedInstruction(f"operand {self.text!r} is not a {width}-bit constant")


def parse_operand(text: str) -> Operand:
    """One operand with its input modifiers (-x, |x|, -|x|, neg(x), abs(x), sext(x)); else a symbol.

    Raises UnsupportedInstruction for a register that does not exist.
    """
    if _INTEGER.fullmatch(text):
        return Operand("integer", text, value=int(text, 0))
    if _FLOAT.fullmatch(text):
        return Operand("float", text, value=float(text))
    body, modifiers = _input_modifiers(text)
    if match := _REGISTER.fullmatch(body):
        bank, only, banks, first, last = match.groups()
        start, end = int(only or first), int(only or last)
        return _register(text, bank or banks, start, end, modifiers)
    if body in _SPECIAL:
        return Operand("scalar", text, *_SPECIAL[body], **modifiers)
    if modifiers and _INTEGER.fullmatch(body):
        return Operand("integer", text, value=int(body, 0), **modifiers)
    return Operand("off" if text == "off" else "symbol", text)


def _input_modifiers(text: str) -> tuple[str, dict[str, bool]]:
    found: dict[str, bool] = {}
    if text.startswith("sext(") and text.endswith(")"):
        return text[5:-1], {"extend": True}
    if text.startswith("neg(") and text.endswith(")"):
        text, found["negate"] = text[4:-1], True
    elif text.startswith("-"):
        text, found["negate"] = text[1:], True
    if text.startswith("abs(") and text.endswith(")"):
        text, found["absolute"] = text[4:-1], True
    elif text.startswith("|") and text.endswith("|"):
        text, found["absolute"] = text[1:-1], True
    return text, found


def _register(text: str, bank: str, first: int, last: int, modifiers: dict[str, bool]) -> Operand:
    if not first <= last <= _LAST[bank]:
        raise UnsupportedInstruction(f"{text} is no register")
    kind: Kind = "scalar" if bank == "s" else "vector"
    return Operand(kind, text, _FIRST[bank] + first, last - first + 1, **modifiers)
