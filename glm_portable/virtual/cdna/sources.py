"""Readers of vector instructions' sources, one for each letter of a signature."""

from collections.abc import Callable
from typing import Any

import numpy as np

from glm_portable.virtual.cdna.faults import UnsupportedInstruction
from glm_portable.virtual.cdna.lanes import LANES, Vector, Words, to_booleans
from glm_portable.virtual.cdna.operands import SGPR, Operand
from glm_portable.virtual.cdna.state import Wave

Reader = Callable[[Wave], Vector]
Transform = Callable[[Wave, Words], Words]
"""What SDWA or DPP does to a source before the operation sees it."""

_SIGN = np.uint32(1 << 31)
_TYPES: dict[str, type[Any]] = {
    "b": np.uint32,
    "u": np.uint32,
    "i": np.int32,
    "f": np.float32,
    "U": np.uint64,
    "I": np.int64,
}


def source(operand: Operand, letter: str, transform: Transform | None = None) -> Reader:
    """Raises UnsupportedInstruction for an operand that the letter does not admit."""
    if (operand.negate or operand.absolute) and letter not in "fb":
        raise UnsupportedInstruction(f"operand {operand.text!r} where an integer is meant")
    if letter == "m":
        return _mask(operand)
    wide = letter in "UI"
    if operand.is_register and operand.count != (2 if wide else 1):
        raise UnsupportedInstruction(f"operand {operand.text!r} of {operand.count} registers")
    if wide and transform is not None:
        raise UnsupportedInstruction("SDWA or DPP on a 64-bit source")
    read = _wide(operand) if wide else _with_sign(raw(operand), operand, transform)
    kind = _TYPES[letter]
    if kind in (np.uint32, np.uint64):
        return read
    return lambda wave: read(wave).view(kind)


def raw(operand: Operand, offset: int = 0) -> Callable[[Wave], Words]:
    """The 32-bit register `offset` places after the operand's first, in every lane."""
    register = operand.register + offset
    if operand.kind == "vector":
        return lambda wave: wave.vectors[register]
    if operand.kind == "scalar":
        index = register - SGPR
        return lambda wave: np.full(LANES, wave.scalars[index], np.uint32)
    constant = np.full(LANES, operand.bits(32), np.uint32)
    constant.flags.writeable = False
    return lambda wave: constant


def _with_sign(
    read: Callable[[Wave], Words], operand: Operand, transform: Transform | None
) -> Callable[[Wave], Words]:
    """Apply SDWA or DPP, then |x|, then -x."""
    steps: list[Transform] = [] if transform is None else [transform]
    if operand.absolute:
        steps.append(lambda _, x: x & ~_SIGN)
    if operand.negate:
        steps.append(lambda _, x: x ^ _SIGN)
    if not steps:
        return read

    def run(wave: Wave) -> Words:
        values = read(wave)
        for step in steps:
            values = step(wave, values)
        return values

    return run


def _wide(operand: Operand) -> Reader:
    if not operand.is_register:
        constant = np.full(LANES, operand.bits(64), np.uint64)
        return lambda wave: constant
    low, high = raw(operand), raw(operand, 1)
    return lambda wave: low(wave).astype(np.uint64) | high(wave).astype(np.uint64) << np.uint64(32)


def _mask(operand: Operand) -> Reader:
    if not operand.is_register:
        constant = to_booleans(operand.bits(64))
        return lambda wave: constant
    if operand.kind != "scalar" or operand.count != 2:
        raise UnsupportedInstruction(f"operand {operand.text!r} as a lane mask")
    register = operand.register
    return lambda wave: to_booleans(wave.read_scalars(register, 2))
