"""Readers of vector instructions' sources, one for each letter of a signature."""

from collections.abc import Callable

import numpy as np

from glm_portable.virtual.cdna.faults import UnsupportedInstruction
from glm_portable.virtual.cdna.lanes import LANES, Vector, Words, to_booleans
from glm_portable.virtual.cdna.operands import SGPR, Operand
from glm_portable.virtual.cdna.state import Wave

Reader = Callable[[Wave], Vector]
Transform = Callable[[Wave, Words], Words]
"""What SDWA or DPP does to a source before the operation sees it."""

_LOW, _HIGH = np.uint32(0xFFFF), np.uint32(16)
_VIEWS: dict[str, Callable[[Vector], Vector]] = {
    "i": lambda x: x.view(np.int32),
    "f": lambda x: x.view(np.float32),
    "w": lambda x: x & _LOW,
    "p": lambda x: x & _LOW,
    "j": lambda x: (x << _HIGH).view(np.int32) >> 16,
    "h": lambda x: x.astype(np.uint16).view(np.float16),
    "I": lambda x: x.view(np.int64),
}


def source(
    operand: Operand, letter: str, transform: Transform | None = None, half: int = 0
) -> Reader:
    """half: of a 16-bit source, as op_sel says.

    Raises UnsupportedInstruction for an operand that the letter does not admit.
    """
    if (operand.negate or operand.absolute) and letter not in "fbhp":
        raise UnsupportedInstruction(f"operand {operand.text!r} where an integer is meant")
    if letter == "m":
        return _mask(operand)
    wide = letter in "UI"
    if operand.is_register and operand.count != (2 if wide else 1):
        raise UnsupportedInstruction(f"operand {operand.text!r} of {operand.count} registers")
    if wide and transform is not None:
        raise UnsupportedInstruction("SDWA or DPP on a 64-bit source")
    if letter in "wjhp":
        read = _sixteen(operand, letter, transform, half)
    else:
        read = _wide(operand, letter) if wide else _with_sign(raw(operand), operand, 31, transform)
    view = _VIEWS.get(letter)
    return read if view is None else lambda wave: view(read(wave))


def raw(operand: Operand, offset: int = 0, width: int = 32) -> Callable[[Wave], Words]:
    """The 32-bit register `offset` places after the operand's first, in every lane; or a constant
    as an operation of `width` bits sees it."""
    register = operand.register + offset
    if operand.kind == "vector":
        return lambda wave: wave.vectors[register]
    if operand.kind == "scalar":
        index = register - SGPR
        return lambda wave: np.full(LANES, wave.scalars[index], np.uint32)
    constant = np.full(LANES, operand.bits(width), np.uint32)
    constant.flags.writeable = False
    return lambda wave: constant


def with_sign(read: Callable[[Wave], Words], operand: Operand, bit: int) -> Callable[[Wave], Words]:
    """|x|, then -x, on the sign at `bit`."""
    return _with_sign(read, operand, bit, None)


def _sixteen(
    operand: Operand, letter: str, transform: Transform | None, half: int
) -> Callable[[Wave], Words]:
    """The half is below bit 16 of what this reads."""
    if half and (transform is not None or not operand.is_register):
        raise UnsupportedInstruction(f"the upper half of {operand.text}")
    if operand.kind == "float" and letter in "wj":
        raise UnsupportedInstruction(f"operand {operand.text!r} where an integer is meant")
    read = raw(operand, width=16)
    shifted = (lambda wave: read(wave) >> _HIGH) if half else read
    return _with_sign(shifted, operand, 15, transform)


def _with_sign(
    read: Callable[[Wave], Words], operand: Operand, bit: int, transform: Transform | None
) -> Callable[[Wave], Words]:
    """Apply SDWA or DPP, then |x|, then -x."""
    sign = np.uint32(1 << bit)
    steps: list[Transform] = [] if transform is None else [transform]
    if operand.absolute:
        steps.append(lambda _, x: x & ~sign)
    if operand.negate:
        steps.append(lambda _, x: x ^ sign)
    if not steps:
        return read

    def run(wave: Wave) -> Words:
        values = read(wave)
        for step in steps:
            values = step(wave, values)
        return values

    return run


def _wide(operand: Operand, letter: str) -> Reader:
    if not operand.is_register:
        if letter == "I" and operand.kind == "integer" and operand.bits(64) >> 31 == 1:
            raise UnsupportedInstruction(f"{operand.text} as a signed operand of 64 bits")
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
