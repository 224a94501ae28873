"""Vector instructions that move values between lanes or to scalar registers.

CDNA3 ISA section 12.8 (V_READFIRSTLANE, V_READLANE, V_WRITELANE, V_MBCNT), CDNA4 ISA
(V_PERMLANE16_SWAP, V_PERMLANE32_SWAP).
"""

from collections.abc import Callable

import numpy as np

from glm_portable.virtual.cdna.decoded import Context, Execute
from glm_portable.virtual.cdna.faults import UnsupportedInstruction
from glm_portable.virtual.cdna.lanes import ALL, LANE, Words, to_mask
from glm_portable.virtual.cdna.operands import Operand
from glm_portable.virtual.cdna.operation import Operation
from glm_portable.virtual.cdna.parser import Instruction
from glm_portable.virtual.cdna.scalar import destination, reader
from glm_portable.virtual.cdna.sources import raw
from glm_portable.virtual.cdna.state import M32, Wave
from glm_portable.virtual.cdna.vector import bind_operation


def bind(instruction: Instruction, _: Context) -> Execute | None:
    """None for a mnemonic of another family."""
    name = instruction.mnemonic
    if name == "v_readfirstlane_b32":
        return _bind_read_first(instruction)
    if name == "v_readlane_b32":
        return _bind_read(instruction)
    if name == "v_writelane_b32":
        return _bind_write(instruction)
    if name in ("v_mbcnt_lo_u32_b32", "v_mbcnt_hi_u32_b32"):
        return bind_operation(instruction, Operation(_below(name[8:10]), "uu>u"))
    if name == "v_swap_b32":
        return _bind_exchange(instruction)
    if name in ("v_permlane16_swap_b32", "v_permlane32_swap_b32"):
        return _bind_swap(instruction, int(name[10:12]))
    return None


def _lanes(operand: Operand) -> Callable[[Wave], Words]:
    if operand.kind != "vector" or operand.count != 1 or operand.modified:
        raise UnsupportedInstruction(f"operand {operand.text!r}, not a vector register")
    return raw(operand)


def _copy_lane(wave: Wave, target: int, source: Operand, values: Words, lane: int) -> None:
    undefined = wave.undefined[source.register]
    wave.write_scalars(target, 1, int(values[lane]), M32 if undefined >> lane & 1 else 0)


def _bind_read_first(instruction: Instruction) -> Execute:
    """The first lane that EXEC enables; lane 0 if there is none."""
    instruction.expect(2)
    target, source = instruction.operands
    register = destination(target, 1)
    read = _lanes(source)

    def execute(wave: Wave) -> None:
        lane = (wave.exec & -wave.exec).bit_length() - 1 if wave.exec else 0
        _copy_lane(wave, register, source, read(wave), lane)

    return execute


def _bind_read(instruction: Instruction) -> Execute:
    instruction.expect(3)
    target, source, lane = instruction.operands
    register = destination(target, 1)
    read, read_lane = _lanes(source), reader(lane, 32)

    def execute(wave: Wave) -> None:
        wave.require_defined("lane number", lane.registers)
        _copy_lane(wave, register, source, read(wave), read_lane(wave) & 63)

    return execute


def _bind_write(instruction: Instruction) -> Execute:
    """One lane, whatever EXEC says."""
    instruction.expect(3)
    target, source, lane = instruction.operands
    _lanes(target)
    read, read_lane = reader(source, 32), reader(lane, 32)

    def execute(wave: Wave) -> None:
        wave.require_defined("lane number", lane.registers)
        index = read_lane(wave) & 63
        wave.vectors[target.register, index] = read(wave)
        unknown = any(wave.undefined[r] for r in source.registers)
        wave.undefined[target.register] &= ~(1 << index)
        wave.undefined[target.register] |= unknown << index

    return execute


def _below(half: str) -> Callable[[Words, Words], Words]:
    """V_MBCNT: add the number of the mask's bits below the lane, of lanes 0-31 or 32-63."""
    lanes = np.clip(LANE - (0 if half == "lo" else 32), 0, 32)
    below = ((1 << lanes) - 1).astype(np.uint32)
    return lambda mask, total: np.bitwise_count(mask & below).astype(np.uint32) + total


def _bind_exchange(instruction: Instruction) -> Execute:
    """V_SWAP_B32: in the lanes that EXEC enables."""
    instruction.expect(2)
    for operand in instruction.operands:
        _lanes(operand)
    first, second = (operand.register for operand in instruction.operands)

    def execute(wave: Wave) -> None:
        before, undefined = wave.vectors[first].copy(), wave.undefined[first]
        wave.write_vector(first, wave.vectors[second], wave.undefined[second])
        wave.write_vector(second, before, undefined)

    return execute


def _bind_swap(instruction: Instruction, group: int) -> Execute:
    """Exchange odd groups of `group` lanes of the first register with even ones of the second.

    What lanes that EXEC disables do is not documented.
    """
    instruction.expect(2)
    for operand in instruction.operands:
        _lanes(operand)
    first, second = (operand.register for operand in instruction.operands)
    even = LANE // group % 2 == 0
    even_mask = to_mask(even)

    def execute(wave: Wave) -> None:
        if wave.exec != ALL:
            raise UnsupportedInstruction("a swap of lanes that EXEC disables")
        a, b = wave.vectors[first], wave.vectors[second]
        a[~even], b[even] = b[even], a[~even].copy()
        ua, ub = wave.undefined[first], wave.undefined[second]
        wave.undefined[first] = ua & even_mask | (ub & even_mask) << group & ALL
        wave.undefined[second] = ub & ~even_mask | (ua & ~even_mask) >> group

    return execute
