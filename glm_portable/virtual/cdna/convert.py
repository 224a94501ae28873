"""Conversion instructions between FP8, BF16 and float32 (CDNA3 ISA section 12.8 and 12.11,
V_CVT_*_FP8 / _BF8; CDNA4 ISA, V_CVT_SCALEF32_*). The dialect of FP8 is the chip's."""

from collections.abc import Callable

import numpy as np

from glm_portable.virtual.cdna.conversions import MiniFloat, to_bf16, to_fp16
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


def bind(instruction: Instruction, context: Context) -> Execute | None:
    """None for a mnemonic of another family."""
    name = instruction.mnemonic
    form = context.chip.bf8 if "bf8" in name else context.chip.fp8
    if name in ("v_cvt_f32_fp8", "v_cvt_f32_bf8"):
        return bind_operation(instruction, Operation(form.decode, "u>f"))
    if name in ("v_cvt_pk_f32_fp8", "v_cvt_pk_f32_bf8"):
        return _bind_unpack(instruction, form)
    if name in ("v_cvt_pk_fp8_f32", "v_cvt_pk_bf8_f32"):
        return _bind_pack(instruction, form, scaled=False)
    if name in ("v_cvt_scalef32_pk_fp8_f32", "v_cvt_scalef32_pk_bf8_f32"):
        return _bind_pack(instruction, form, scaled=True)
    if name.startswith("v_cvt_scalef32_pk_") and name.endswith(("_fp8", "_bf8")):
        return _bind_scaled_unpack(instruction, form, name.split("_")[4])
    return None


def _bind_unpack(instruction: Instruction, form: MiniFloat) -> Execute:
    """Two codes, of the source's low word or the one SDWA or op_sel names, to two float32."""
    instruction.expect(2)
    target, operand = instruction.operands
    high = instruction.modifiers.bits("op_sel", 2, 0)[0]
    read = source(operand, "u", forms_of(instruction).source(0))
    registers = tuple(operand.registers)

    def execute(wave: Wave) -> None:
        undefined = _undefined(wave, operand, registers)
        codes = read(wave) >> _HIGH if high else read(wave)
        values = [form.decode(codes >> np.uint32(8 * i)).view(np.uint32) for i in range(2)]
        for i in range(2):
            wave.write_vector(target.register + i, values[i], undefined)

    return execute


def _bind_pack(instruction: Instruction, form: MiniFloat, scaled: bool) -> Execute:
    """Two float32, divided by the scale if there is one, to two codes in the half of the
    destination that the last bit of op_sel names; the other half is kept."""
    instruction.expect(4 if scaled else 3)
    target, *operands = instruction.operands
    high = instruction.modifiers.bits("op_sel", len(operands) + 1, 0)[-1]
    reads = [source(operand, "f") for operand in operands]

    def execute(wave: Wave) -> None:
        undefined = 0
        for operand in operands:
            undefined |= _undefined(wave, operand, tuple(operand.registers))
        a, b, *scale = (read(wave) for read in reads)
        if scale:
            a, b = a / _power_of_two(scale[0]), b / _power_of_two(scale[0])
        codes = _pack(form, a, b, wave.fp16_overflow)
        old = wave.vectors[target.register]
        merged = old & _LOW | codes << _HIGH if high else old & ~_LOW | codes
        wave.write_vector(target.register, merged, undefined)

    return execute


def _pack(form: MiniFloat, a: Vector, b: Vector, clamp: bool) -> Words:
    return form.encode(a, clamp) | form.encode(b, clamp) << np.uint32(8)


def _bind_scaled_unpack(instruction: Instruction, form: MiniFloat, to: str) -> Execute:
    """Two codes of the half that op_sel's first bit names, times the scale, to two values."""
    instruction.expect(3)
    high = instruction.modifiers.bits("op_sel", 3, 0)[0]
    instruction.modifiers.take("op_sel_hi")
    round_to: dict[str, Callable[[Vector], Words]] = {"bf16": to_bf16, "f16": to_fp16}
    if to == "f32":
        raise UnsupportedInstruction(f"{instruction.mnemonic} is not implemented")
    encode = round_to[to]

    def run(codes: Words, scale: Vector) -> Words:
        codes = codes >> _HIGH if high else codes
        power = _power_of_two(scale)
        low = encode(form.decode(codes) * power)
        return low | encode(form.decode(codes >> np.uint32(8)) * power) << _HIGH

    return bind_operation(instruction, Operation(run, "uf>u"))


def _power_of_two(scale: Vector) -> Vector:
    """A float32 scale counts by its exponent field alone, an E8M0 number."""
    return (scale.view(np.uint32) & np.uint32(0xFF << 23)).view(np.float32)


def _undefined(wave: Wave, operand: Operand, registers: tuple[int, ...]) -> int:
    if operand.kind == "vector":
        return wave.undefined_lanes(registers)
    return wave.undefined_lanes((), registers)
