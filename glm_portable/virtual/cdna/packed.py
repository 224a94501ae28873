"""Packed and other operations whose modifiers choose parts of their operands: V_PK_*, V_FMA_MIX*
(CDNA3 ISA section 12.10, VOP3P) and V_BITOP3 (CDNA4)."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from glm_portable.virtual.cdna.conversions import from_fp16, to_fp16, to_fp16_saturated
from glm_portable.virtual.cdna.decoded import Context, Execute
from glm_portable.virtual.cdna.faults import UnsupportedInstruction
from glm_portable.virtual.cdna.floating import fma, maximum_number, minimum_number
from glm_portable.virtual.cdna.half import fma16, saturated
from glm_portable.virtual.cdna.integer import truth_table
from glm_portable.virtual.cdna.lanes import ALL, Vector, Words
from glm_portable.virtual.cdna.operands import SGPR, Operand
from glm_portable.virtual.cdna.operation import Operation
from glm_portable.virtual.cdna.parser import Instruction
from glm_portable.virtual.cdna.sources import raw, with_sign
from glm_portable.virtual.cdna.state import Wave
from glm_portable.virtual.cdna.vector import bind_operation

_LOW, _HIGH = np.uint32(0xFFFF), np.uint32(16)
_COUNT = np.uint32(15)
_PAIRS: dict[str, tuple[int, Callable[..., Vector]]] = {
    "v_pk_add_f32": (2, lambda a, b: a + b),
    "v_pk_mul_f32": (2, lambda a, b: a * b),
    "v_pk_fma_f32": (3, fma),
}
"""By mnemonic: the number of sources, and the operation on each of two float32."""

_HALVES: dict[str, tuple[str, Callable[..., Vector]]] = {
    "v_pk_add_f16": ("hh", lambda a, b: a + b),
    "v_pk_mul_f16": ("hh", lambda a, b: a * b),
    "v_pk_fma_f16": ("hhh", fma16),
    "v_pk_min_f16": ("hh", minimum_number),
    "v_pk_max_f16": ("hh", maximum_number),
    "v_pk_add_u16": ("ww", lambda a, b: a + b),
    "v_pk_add_i16": ("ww", lambda a, b: a + b),
    "v_pk_sub_u16": ("ww", lambda a, b: a - b),
    "v_pk_sub_i16": ("ww", lambda a, b: a - b),
    "v_pk_mul_lo_u16": ("ww", lambda a, b: a * b),
    "v_pk_mad_u16": ("www", lambda a, b, c: a * b + c),
    "v_pk_mad_i16": ("www", lambda a, b, c: a * b + c),
    "v_pk_min_u16": ("ww", np.minimum),
    "v_pk_max_u16": ("ww", np.maximum),
    "v_pk_min_i16": ("jj", np.minimum),
    "v_pk_max_i16": ("jj", np.maximum),
    "v_pk_lshlrev_b16": ("ww", lambda n, a: a << (n & _COUNT)),
    "v_pk_lshrrev_b16": ("ww", lambda n, a: a >> (n & _COUNT)),
    "v_pk_ashrrev_i16": ("jj", lambda n, a: a >> (n & 15)),
}
"""By mnemonic: a letter for each source (see Operation), and the operation on each half."""

_VIEWS: dict[str, Callable[[Words], Vector]] = {
    "w": lambda x: x & _LOW,
    "j": lambda x: (x << _HIGH).view(np.int32) >> 16,
    "h": lambda x: x.astype(np.uint16).view(np.float16),
}


def bind(instruction: Instruction, _: Context) -> Execute | None:
    """None for a mnemonic of another family."""
    name = instruction.mnemonic
    if name in _PAIRS:
        return _bind_pairs(instruction, *_PAIRS[name])
    if name in _HALVES:
        return _bind_halves(instruction, *_HALVES[name])
    if name == "v_pk_mov_b32":
        return _bind_move(instruction)
    if name in ("v_fma_mix_f32", "v_fma_mixlo_f16", "v_fma_mixhi_f16"):
        return _bind_mix(instruction, name)
    if name in ("v_bitop3_b32", "v_bitop3_b16"):
        return _bind_truth_table(instruction)
    return None


@dataclass(frozen=True)
class Part:
    """A half of a source: how to read it, and the register it is in (None: a constant)."""

    read: Callable[[Wave], Words]
    register: int | None

    def undefined(self, wave: Wave) -> int:
        if self.register is None or not wave.undefined[self.register]:
            return 0
        return wave.undefined[self.register] if self.register < SGPR else ALL


def _undefined(wave: Wave, parts: list[Part]) -> int:
    undefined = 0
    for part in parts:
        undefined |= part.undefined(wave)
    return undefined


def _selected(
    instruction: Instruction, count: int, part: Callable[[Operand, int, int], Part]
) -> tuple[list[Part], list[Part]]:
    """The parts that give the low result, by op_sel and neg_lo, and the high one, by op_sel_hi and
    neg_hi."""
    instruction.expect(count + 1)
    modifiers, sources = instruction.modifiers, instruction.operands[1:]
    low, high = (
        [
            part(source, half, sign)
            for source, half, sign in zip(
                sources,
                modifiers.bits(select, count, default),
                modifiers.bits(negate, count, 0),
                strict=True,
            )
        ]
        for select, negate, default in (("op_sel", "neg_lo", 0), ("op_sel_hi", "neg_hi", 1))
    )
    return low, high


def _bind_pairs(instruction: Instruction, count: int, function: Callable[..., Vector]) -> Execute:
    low, high = _selected(instruction, count, _word)
    return _write_pair(instruction, low, high, function)


def _bind_move(instruction: Instruction) -> Execute:
    """op_sel names the half of the first source for the low result, of the second for the high."""
    instruction.expect(3)
    select = instruction.modifiers.bits("op_sel", 2, 0)
    instruction.modifiers.take("op_sel_hi")  # V_PK_MOV_B32 reads OPSEL alone
    first, second = (
        _word(source, half, 0)
        for source, half in zip(instruction.operands[1:], select, strict=True)
    )
    return _write_pair(instruction, [first], [second], lambda a: a.copy())


def _word(operand: Operand, half: int, negate: int) -> Part:
    """The low or high register of a pair, as float32."""
    if operand.is_register and operand.count != 2:
        raise UnsupportedInstruction(f"operand {operand.text!r} is not a pair")
    if half and not operand.is_register:
        raise UnsupportedInstruction(f"the upper half of the constant {operand.text}")
    if operand.modified:
        raise UnsupportedInstruction(f"operand {operand.text!r} of a packed instruction")
    register = operand.register + half if operand.is_register else None
    return Part(_negated(raw(operand, half), 31) if negate else raw(operand, half), register)


def _negated(read: Callable[[Wave], Words], bit: int) -> Callable[[Wave], Words]:
    sign = np.uint32(1 << bit)
    return lambda wave: read(wave) ^ sign


def _write_pair(
    instruction: Instruction, low: list[Part], high: list[Part], function: Callable[..., Vector]
) -> Execute:
    target = _destination(instruction, 2)

    def half(wave: Wave, parts: list[Part]) -> tuple[Words, int]:
        values = function(*[part.read(wave).view(np.float32) for part in parts])
        return values.view(np.uint32), _undefined(wave, parts)

    def execute(wave: Wave) -> None:
        results = half(wave, low), half(wave, high)
        for i, (words, undefined) in enumerate(results):
            wave.write_vector(target + i, words, undefined)

    return execute


def _destination(instruction: Instruction, count: int) -> int:
    operand = instruction.operands[0]
    if operand.kind != "vector" or operand.count != count or operand.modified:
        raise UnsupportedInstruction(f"destination {operand.text!r}")
    return operand.register


def _bind_halves(
    instruction: Instruction, letters: str, function: Callable[..., Vector]
) -> Execute:
    low, high = _selected(instruction, len(letters), _half)
    target = _destination(instruction, 1)
    views = [_VIEWS[letter] for letter in letters]
    float16 = "h" in letters
    limited = saturated(function) if float16 else function

    def half(wave: Wave, parts: list[Part]) -> Words:
        compute = limited if wave.fp16_overflow else function
        sources = [view(part.read(wave)) for view, part in zip(views, parts, strict=True)]
        values = compute(*sources)
        return (values.view(np.uint16) if float16 else values).astype(np.uint32) & _LOW

    def execute(wave: Wave) -> None:
        words = half(wave, low) | half(wave, high) << _HIGH
        wave.write_vector(target, words, _undefined(wave, low + high))

    return execute


def _half(operand: Operand, half: int, negate: int) -> Part:
    """16 bits of a register, or of a constant: an integer is 32 bits wide, a float 16."""
    if operand.modified or operand.is_register and operand.count != 1:
        raise UnsupportedInstruction(f"operand {operand.text!r} of a packed instruction")
    if half and operand.kind == "float":
        raise UnsupportedInstruction(f"the upper half of the constant {operand.text}")
    read = raw(operand, width=16 if operand.kind == "float" else 32)
    chosen = (lambda wave: read(wave) >> _HIGH) if half else read
    register = operand.register if operand.is_register else None
    return Part(_negated(chosen, 15) if negate else chosen, register)


def _bind_mix(instruction: Instruction, name: str) -> Execute:
    """Of each source float32, or, where op_sel_hi is 1, the half that op_sel names, as float16."""
    instruction.expect(4)
    modifiers, sources = instruction.modifiers, instruction.operands[1:]
    target = _destination(instruction, 1)
    halves, small = (modifiers.bits(bits, 3, 0) for bits in ("op_sel", "op_sel_hi"))
    parts = [_mixed(*each) for each in zip(sources, small, halves, strict=True)]
    high = name == "v_fma_mixhi_f16"

    def execute(wave: Wave) -> None:
        values = fma(*[part.read(wave).view(np.float32) for part in parts])
        words = values.view(np.uint32)
        if name != "v_fma_mix_f32":
            old = wave.vectors[target]
            codes = to_fp16_saturated(values) if wave.fp16_overflow else to_fp16(values)
            words = old & _LOW | codes << _HIGH if high else old & ~_LOW | codes
        wave.write_vector(target, words, _undefined(wave, parts))

    return execute


def _mixed(operand: Operand, small: int, half: int) -> Part:
    if operand.is_register and operand.count != 1 or operand.extend:
        raise UnsupportedInstruction(f"operand {operand.text!r} of a mixed instruction")
    if small and not operand.is_register:
        raise UnsupportedInstruction(f"the constant {operand.text} as float16")
    register = operand.register if operand.is_register else None
    read = raw(operand)
    if small:
        shift = _HIGH if half else np.uint32(0)
        word = read
        read = lambda wave: from_fp16(word(wave) >> shift & _LOW).view(np.uint32)  # noqa: E731
    return Part(with_sign(read, operand, 31), register)


def _bind_truth_table(instruction: Instruction) -> Execute:
    table = instruction.modifiers.integer("bitop3")

    def run(a: Words, b: Words, c: Words) -> Words:
        return truth_table(a, b, c, table)

    if instruction.mnemonic == "v_bitop3_b16":
        return bind_operation(instruction, Operation(run, "www>w", keeps_upper=True))
    return bind_operation(instruction, Operation(run, "uuu>u"))
