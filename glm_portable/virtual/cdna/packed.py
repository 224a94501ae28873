"""Packed and other operations whose modifiers choose parts of their operands: V_PK_*_F32,
V_PK_MOV_B32 (CDNA3 ISA section 12.10, VOP3P) and V_BITOP3 (CDNA4)."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from glm_portable.virtual.cdna.decoded import Context, Execute
from glm_portable.virtual.cdna.faults import UnsupportedInstruction
from glm_portable.virtual.cdna.floating import fma
from glm_portable.virtual.cdna.integer import truth_table
from glm_portable.virtual.cdna.lanes import ALL, Vector, Words
from glm_portable.virtual.cdna.operands import SGPR, Operand
from glm_portable.virtual.cdna.operation import Operation
from glm_portable.virtual.cdna.parser import Instruction
from glm_portable.virtual.cdna.sources import raw
from glm_portable.virtual.cdna.state import Wave
from glm_portable.virtual.cdna.vector import bind_operation

_SIGN = np.uint32(1 << 31)
_PACKED: dict[str, tuple[int, Callable[..., Vector]]] = {
    "v_pk_add_f32": (2, lambda a, b: a + b),
    "v_pk_mul_f32": (2, lambda a, b: a * b),
    "v_pk_fma_f32": (3, fma),
}


def bind(instruction: Instruction, _: Context) -> Execute | None:
    """None for a mnemonic of another family."""
    name = instruction.mnemonic
    if name in _PACKED:
        return _bind_packed(instruction, *_PACKED[name])
    if name == "v_pk_mov_b32":
        return _bind_packed_move(instruction)
    if name in ("v_bitop3_b32", "v_bitop3_b16"):
        return _bind_truth_table(instruction)
    return None


@dataclass(frozen=True)
class Part:
    """A half of a source pair: how to read it, and the register it is in (None: a constant)."""

    read: Callable[[Wave], Words]
    register: int | None

    def undefined(self, wave: Wave) -> int:
        if self.register is None or not wave.undefined[self.register]:
            return 0
        return wave.undefined[self.register] if self.register < SGPR else ALL


def _bind_packed(instruction: Instruction, count: int, function: Callable[..., Vector]) -> Execute:
    """Each half of the result takes the half of each source that op_sel / op_sel_hi name."""
    instruction.expect(count + 1)
    modifiers, sources = instruction.modifiers, instruction.operands[1:]
    low, high = (
        [
            _part(source, half, sign)
            for source, half, sign in zip(
                sources,
                modifiers.bits(select, count, default),
                modifiers.bits(negate, count, 0),
                strict=True,
            )
        ]
        for select, negate, default in (("op_sel", "neg_lo", 0), ("op_sel_hi", "neg_hi", 1))
    )
    return _write_pair(instruction, low, high, function)


def _bind_packed_move(instruction: Instruction) -> Execute:
    """op_sel names the half of the first source for the low result, of the second for the high."""
    instruction.expect(3)
    select = instruction.modifiers.bits("op_sel", 2, 0)
    instruction.modifiers.take("op_sel_hi")
    first, second = (
        _part(source, half, 0)
        for source, half in zip(instruction.operands[1:], select, strict=True)
    )
    return _write_pair(instruction, [first], [second], lambda a: a.copy())


def _part(operand: Operand, half: int, negate: int) -> Part:
    if operand.is_register and operand.count != 2:
        raise UnsupportedInstruction(f"operand {operand.text!r} is not a pair")
    if half and not operand.is_register:
        raise UnsupportedInstruction(f"the upper half of the constant {operand.text}")
    if operand.negate or operand.absolute:
        raise UnsupportedInstruction(f"operand {operand.text!r} of a packed instruction")
    read = raw(operand, half)
    register = operand.register + half if operand.is_register else None
    return Part((lambda wave: read(wave) ^ _SIGN) if negate else read, register)


def _write_pair(
    instruction: Instruction, low: list[Part], high: list[Part], function: Callable[..., Vector]
) -> Execute:
    target = instruction.operands[0].register

    def half(wave: Wave, parts: list[Part]) -> tuple[Words, int]:
        undefined = 0
        for part in parts:
            undefined |= part.undefined(wave)
        values = function(*[part.read(wave).view(np.float32) for part in parts])
        return values.view(np.uint32), undefined

    def execute(wave: Wave) -> None:
        results = half(wave, low), half(wave, high)
        for i, (words, undefined) in enumerate(results):
            wave.write_vector(target + i, words, undefined)

    return execute


def _bind_truth_table(instruction: Instruction) -> Execute:
    table = instruction.modifiers.integer("bitop3")
    keep = np.uint32(0xFFFF if instruction.mnemonic.endswith("b16") else 0xFFFFFFFF)

    def run(a: Words, b: Words, c: Words) -> Words:
        return truth_table(a, b, c, table) & keep

    return bind_operation(instruction, Operation(run, "uuu>u"))
