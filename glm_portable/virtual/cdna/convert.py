"""Conversion instructions between FP8, BF16, FP16 and float32 (CDNA3 ISA section 12.8 and 12.11,
V_CVT_*_FP8 / _BF8; CDNA4 ISA, V_CVT_SCALEF32_*). The dialect of FP8 is the chip's.

What writes half a register keeps the other half, and defines the whole register: of a register
that is undefined in one half alone nothing is tracked.
"""

import re
from collections.abc import Callable
from functools import partial

import numpy as np

from glm_portable.virtual.cdna.conversions import (
    MiniFloat,
    from_bf16,
    from_fp16,
    to_bf16,
    to_fp16,
    to_fp16_saturated,
)
from glm_portable.virtual.cdna.decoded import Context, Execute
from glm_portable.virtual.cdna.faults import UnsupportedInstruction
from glm_portable.virtual.cdna.forms import forms_of
from glm_portable.virtual.cdna.lanes import Vector, Words
from glm_portable.virtual.cdna.operands import Operand
from glm_portable.virtual.cdna.operation import Operation
from glm_portable.virtual.cdna.parser import Instruction
from glm_portable.virtual.cdna.sources import source
from glm_portable.virtual.cdna.state import Wave
from glm_portable.virtual.cdna.vector import bind_operation

_LOW, _HIGH = np.uint32(0xFFFF), np.uint32(16)
_PLAIN = re.compile(r"v_cvt_(f32_|pk_f32_|pk_)(fp8|bf8)(_f32)?")
_SCALED = re.compile(r"v_cvt_scalef32_pk_(f32|f16|bf16|fp8|bf8)_(f32|f16|bf16|fp8|bf8)")
_TO: dict[str, tuple[Callable[[Vector], Words], Callable[[Vector], Words]]] = {
    "bf16": (to_bf16, to_bf16),
    "f16": (to_fp16, to_fp16_saturated),
}
"""From float32; the second while MODE.FP16_OVFL is set."""
_FROM: dict[str, Callable[[Words], Vector]] = {"bf16": from_bf16, "f16": from_fp16}


def bind(instruction: Instruction, context: Context) -> Execute | None:
    """None for a mnemonic of another family."""
    formats = {"fp8": context.chip.fp8, "bf8": context.chip.bf8}
    if match := _PLAIN.fullmatch(instruction.mnemonic):
        kind, name, packs = match.groups()
        form = formats[name]
        if kind == "pk_" and packs:
            return _bind_pack(instruction, form)
        if kind == "f32_" and not packs:
            return bind_operation(instruction, Operation(form.decode, "u>f"))
        return None if packs or kind == "pk_" else _bind_unpack(instruction, form)
    match = _SCALED.fullmatch(instruction.mnemonic)
    if match is None:
        return None
    to, of = match.groups()
    if to in formats and of not in formats:
        return _bind_scaled_pack(instruction, formats[to], of)
    if of in formats and to in _TO:
        return _bind_scaled_unpack(instruction, formats[of], *_TO[to])
    if of in formats and to == "f32":
        return _bind_unpack(instruction, formats[of], scaled=True)
    return None


def _bind_unpack(instruction: Instruction, form: MiniFloat, scaled: bool = False) -> Execute:
    """Two codes, of the source's low word or the one SDWA or op_sel names, to two float32."""
    instruction.expect(3 if scaled else 2)
    target, *operands = instruction.operands
    register = _destination(target, 2)
    high = instruction.modifiers.bits("op_sel", 2, 0)[0]
    read = source(operands[0], "u", forms_of(instruction).source(0, operands[0].extend))
    read_scale = source(operands[1], "f") if scaled else None

    def execute(wave: Wave) -> None:
        undefined = _undefined(wave, operands)
        codes = read(wave) >> _HIGH if high else read(wave)
        power = 1 if read_scale is None else _power_of_two(read_scale(wave))
        # Both before either is written: a destination may be the source itself.
        values = [
            (form.decode(codes >> np.uint32(8 * i)) * power).astype(np.float32) for i in range(2)
        ]
        for i in range(2):
            wave.write_vector(register + i, values[i].view(np.uint32), undefined)

    return execute


def _bind_pack(instruction: Instruction, form: MiniFloat) -> Execute:
    """Two float32 to two codes."""
    instruction.expect(3)
    a, b = (source(operand, "f") for operand in instruction.operands[1:])
    return _write_codes(instruction, form, lambda wave: (a(wave), b(wave)))


def _bind_scaled_pack(instruction: Instruction, form: MiniFloat, of: str) -> Execute:
    """Two float32, or a register's two BF16 or FP16, divided by the scale, to two codes."""
    instruction.expect(4 if of == "f32" else 3)
    *operands, scale = instruction.operands[1:]
    reads = [source(operand, "f" if of == "f32" else "u") for operand in operands]
    read_scale = source(scale, "f")

    def read(wave: Wave) -> tuple[Vector, Vector]:
        power = _power_of_two(read_scale(wave))
        if of == "f32":
            a, b = (read(wave) for read in reads)
        else:
            words = reads[0](wave)
            a, b = _FROM[of](words & _LOW), _FROM[of](words >> _HIGH)
        return a / power, b / power

    return _write_codes(instruction, form, read)


def _write_codes(
    instruction: Instruction, form: MiniFloat, read: Callable[[Wave], tuple[Vector, Vector]]
) -> Execute:
    """Into the half of the destination that op_sel's fourth bit names; the other half is kept.

    The assembler writes op_sel with a bit for each source and then the destination's.
    """
    target, *operands = instruction.operands
    register = _destination(target, 1)
    *select, high = instruction.modifiers.bits("op_sel", len(operands) + 1, 0)
    if any(select):
        raise UnsupportedInstruction("op_sel of a source")

    def execute(wave: Wave) -> None:
        undefined = _undefined(wave, operands)
        a, b = read(wave)
        codes = form.encode(a, wave.fp16_overflow)
        codes |= form.encode(b, wave.fp16_overflow) << np.uint32(8)
        old = wave.vectors[register]
        merged = old & _LOW | codes << _HIGH if high else old & ~_LOW | codes
        wave.write_vector(register, merged, undefined)

    return execute


def _bind_scaled_unpack(
    instruction: Instruction,
    form: MiniFloat,
    plain: Callable[[Vector], Words],
    saturated: Callable[[Vector], Words],
) -> Execute:
    """Two codes of the half that op_sel's first bit names, times the scale, to two values."""
    instruction.expect(3)
    high, *others = instruction.modifiers.bits("op_sel", 3, 0)
    if any(others):
        raise UnsupportedInstruction("op_sel of this operand")

    def run(encode: Callable[[Vector], Words], codes: Words, scale: Vector) -> Words:
        codes = codes >> _HIGH if high else codes
        power = _power_of_two(scale)
        low, high_value = (
            encode((form.decode(codes >> np.uint32(8 * i)) * power).astype(np.float32))
            for i in range(2)
        )
        return low | high_value << _HIGH

    limited = partial(run, saturated)
    return bind_operation(instruction, Operation(partial(run, plain), "uf>u", saturated=limited))


def _power_of_two(scale: Vector) -> Vector:
    """A float32 scale counts by its exponent field alone, an E8M0 number: 2^(field - 127), and NaN
    for 255. In float64."""
    field = (scale.view(np.uint32) >> np.uint32(23) & np.uint32(0xFF)).astype(np.int32)
    return np.where(field == 255, np.nan, np.ldexp(1.0, field - 127))


def _destination(operand: Operand, count: int) -> int:
    if operand.kind != "vector" or operand.count != count or operand.modified:
        raise UnsupportedInstruction(f"destination {operand.text!r}")
    return operand.register


def _undefined(wave: Wave, operands: list[Operand]) -> int:
    vectors = tuple(r for o in operands if o.kind == "vector" for r in o.registers)
    scalars = tuple(r for o in operands if o.kind == "scalar" for r in o.registers)
    return wave.undefined_lanes(vectors, scalars)
