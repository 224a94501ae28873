"""Matrix instructions V_MFMA_* (CDNA3 ISA section 7; CDNA4 ISA for the double-K shapes).

A wave multiplies A (M, K) by B (K, N) and adds C (M, N), M = N = 16 or 32. With G = 64 / M groups
of lanes, group g = lane // M and column c = lane % M:

    A[c, k] and B[k, c] for k = g * K/G + i are element i of the lane's packed registers;
    D[row, c] and C[row, c] for row = 4G * (v // 4) + 4g + v % 4 are result register v.

Products and sums are taken in float64 and rounded once. How the hardware rounds inside a sum is
not documented; for integers there is no difference.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from glm_portable.virtual.cdna.conversions import MiniFloat, from_bf16, from_fp16
from glm_portable.virtual.cdna.decoded import Context, Execute
from glm_portable.virtual.cdna.faults import UnsupportedInstruction
from glm_portable.virtual.cdna.lanes import ALL, LANES, Vector, Words, to_booleans, to_mask
from glm_portable.virtual.cdna.operands import Operand
from glm_portable.virtual.cdna.parser import Instruction
from glm_portable.virtual.cdna.state import Wave

Decode = Callable[[Words], Vector]
Matrix = NDArray[np.float64]

_NAME = re.compile(r"v_mfma_(f32|i32)_(\d+)x(\d+)x(\d+)_?(.*)")
_SHAPES = {
    "gfx942": {
        "f32": {(16, 4), (32, 2)},
        "f16": {(16, 16), (32, 8)},
        "bf16": {(16, 16), (32, 8)},
        "fp8": {(16, 32), (32, 16)},
        "i8": {(16, 32), (32, 16)},
    },
}
_SHAPES["gfx950"] = {
    "f32": _SHAPES["gfx942"]["f32"],
    "f16": _SHAPES["gfx942"]["f16"] | {(16, 32), (32, 16)},
    "bf16": _SHAPES["gfx942"]["bf16"] | {(16, 32), (32, 16)},
    "fp8": _SHAPES["gfx942"]["fp8"],
    "i8": _SHAPES["gfx942"]["i8"] | {(16, 64), (32, 32)},
    "f8f6f4": {(16, 128), (32, 64)},
}
"""(M, K) of each operand type."""
_BITS = {"f32": 32, "f16": 16, "bf16": 16}  # an element's, where not 8


@dataclass(frozen=True)
class Layout:
    """Where matrix elements are in lanes and registers."""

    m: int
    k: int

    @property
    def groups(self) -> int:
        return LANES // self.m

    @property
    def result_registers(self) -> int:
        return self.m * self.m // LANES

    def operand(self, elements: Vector) -> Matrix:
        """(K/G elements, 64 lanes) -> A (M, K); B's transpose is laid out alike."""
        split = elements.reshape(self.k // self.groups, self.groups, self.m)
        return split.transpose(2, 1, 0).reshape(self.m, self.k).astype(np.float64)

    def to_registers(self, matrix: Vector) -> Vector:
        """D or C (M, M) -> result registers (M*M/64, 64)."""
        split = matrix.reshape(-1, self.groups, 4, self.m)
        return split.transpose(0, 2, 1, 3).reshape(self.result_registers, LANES)


def bind(instruction: Instruction, context: Context) -> Execute | None:
    """None for a mnemonic of another family."""
    match = _NAME.fullmatch(instruction.mnemonic)
    if match is None:
        return None
    result, m, n, k, kind = match[1], int(match[2]), int(match[3]), int(match[4]), match[5]
    shapes = _SHAPES[context.chip.name]
    family = "fp8" if kind in _FP8_PAIRS else kind or "f32"
    family = family.removesuffix("_1k")
    if m != n or (m, k) not in shapes.get(family, set()) or (result == "i32") != (kind == "i8"):
        raise UnsupportedInstruction(f"{instruction.mnemonic} is not simulated")
    decode_a, decode_b = _decoders(instruction, context, kind)
    layout = Layout(m, k)
    _check_sizes(instruction, layout, layout.k // layout.groups * _BITS.get(family, 8) // 32)
    return _bind_product(instruction, layout, result, decode_a, decode_b)


_FP8_PAIRS = {"fp8_fp8": (0, 0), "fp8_bf8": (0, 1), "bf8_fp8": (1, 0), "bf8_bf8": (1, 1)}


def _decoders(instruction: Instruction, context: Context, kind: str) -> tuple[Decode, Decode]:
    """Registers (n, 64) -> elements (n * elements a register, 64), for A and for B."""
    formats = (_bytes(context.chip.fp8), _bytes(context.chip.bf8))
    if kind == "f8f6f4":
        a, b = (instruction.modifiers.integer(name) for name in ("cbsz", "blgp"))
        if max(a, b) > 1:
            raise UnsupportedInstruction("FP6 and FP4 operands")
        return formats[a], formats[b]
    if kind in _FP8_PAIRS:
        a, b = _FP8_PAIRS[kind]
        return formats[a], formats[b]
    plain: dict[str, Decode] = {"": _f32, "f32": _f32, "f16": _f16, "bf16": _bf16, "i8": _i8}
    decode = plain[kind.removesuffix("_1k")]
    return decode, decode


def _f32(words: Words) -> Vector:
    return words.view(np.float32)


def _f16(words: Words) -> Vector:
    return from_fp16(_split(words, 2))


def _bf16(words: Words) -> Vector:
    return from_bf16(_split(words, 2))


def _i8(words: Words) -> Vector:
    return _split(words, 4).astype(np.uint8).view(np.int8)


def _bytes(form: MiniFloat) -> Decode:
    return lambda words: form.decode(_split(words, 4))


def _split(words: Words, parts: int) -> Words:
    """(n, 64) -> (n * parts, 64), the least significant part of a word first."""
    width = 32 // parts
    pieces = [words >> np.uint32(width * i) & np.uint32((1 << width) - 1) for i in range(parts)]
    return np.stack(pieces, axis=1).reshape(-1, LANES)


def _bind_product(
    instruction: Instruction, layout: Layout, result: str, decode_a: Decode, decode_b: Decode
) -> Execute:
    target, a, b, c = instruction.operands
    kind = np.float32 if result == "f32" else np.int32
    accumulate = _accumulator(layout, c, kind)

    def execute(wave: Wave) -> None:
        a_mk = layout.operand(decode_a(_registers(wave, a)))
        b_nk = layout.operand(decode_b(_registers(wave, b)))
        product = layout.to_registers(a_mk @ b_nk.T)
        total = accumulate(wave) + product
        values = total.astype(np.float32) if kind == np.float32 else _wrap(total)
        undefined = _undefined(wave, layout, a, b, c)
        wave.vectors[target.register : target.register + len(values)] = values.view(np.uint32)
        for i, lanes in enumerate(undefined):
            wave.undefined[target.register + i] = lanes

    return execute


def _check_sizes(instruction: Instruction, layout: Layout, packed: int) -> None:
    """Vector registers of the layout's numbers, `packed` of them for each of A and B; C may be a
    constant."""
    instruction.expect(4)
    target, a, b, c = instruction.operands
    results = layout.result_registers
    for operand, wanted in ((target, results), (a, packed), (b, packed), (c, results)):
        constant = operand is c and operand.kind in ("integer", "float")
        registers = operand.kind == "vector" and operand.count == wanted
        if operand.modified or not (constant or registers):
            raise UnsupportedInstruction(f"operand {operand.text!r}, not {wanted} registers")


def _registers(wave: Wave, operand: Operand) -> Words:
    return wave.vectors[operand.register : operand.register + operand.count]


def _accumulator(layout: Layout, c: Operand, kind: type) -> Callable[[Wave], Vector]:
    if c.kind == "vector":
        return lambda wave: _registers(wave, c).view(kind).astype(np.float64)
    value = np.array([c.bits(32)], np.uint32).view(kind).astype(np.float64)
    constant = np.full((layout.result_registers, LANES), value[0])
    return lambda wave: constant


def _wrap(total: Matrix) -> NDArray[np.int32]:
    """Integers modulo 2^32; float64 holds the sums exactly."""
    return total.astype(np.int64).astype(np.int32)


def _undefined(wave: Wave, layout: Layout, a: Operand, b: Operand, c: Operand) -> list[int]:
    """For each result register, the lanes with an element of an undefined row, column or C.

    EXEC does not count: matrix instructions execute in every lane.
    """
    rows, columns = (_undefined_vectors(wave, layout, operand) for operand in (a, b))
    before = [wave.undefined[r] for r in c.registers] or [0] * layout.result_registers
    if not rows.any() and not columns.any():
        return before
    lanes = layout.to_registers(rows[:, None] | columns[None, :])
    return [to_mask(lane) | mask for lane, mask in zip(lanes, before, strict=True)]


def _undefined_vectors(wave: Wave, layout: Layout, operand: Operand) -> NDArray[np.bool_]:
    """Of A's M rows (B's columns), those with an undefined element."""
    mask = wave.undefined_lanes(tuple(operand.registers)) & ALL
    if not mask:
        return np.zeros(layout.m, np.bool_)
    lanes = to_booleans(mask).reshape(layout.groups, layout.m)
    vectors: NDArray[np.bool_] = np.logical_or.reduce(lanes, axis=0)
    return vectors
