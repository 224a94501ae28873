"""Scalar ALU (CDNA3 ISA sections 12.1 to 12.4: SOP2, SOPK, SOP1, SOPC), on Python ints."""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace

from glm_portable.virtual.cdna.decoded import Context, Execute
from glm_portable.virtual.cdna.faults import UndefinedValue, UnsupportedInstruction
from glm_portable.virtual.cdna.lanes import signed
from glm_portable.virtual.cdna.operands import EXEC, Operand
from glm_portable.virtual.cdna.parser import Instruction
from glm_portable.virtual.cdna.state import Wave

Result = tuple[int, int | None]
"""The value, before it is cut to the register's width, and the new SCC (None: unchanged)."""
Function = Callable[[int, int, int], Result]
"""Of two unsigned sources (the second 0 if there is one) and SCC."""


@dataclass(frozen=True)
class Operation:
    """widths: of the destination and each source, in bits."""

    function: Function
    widths: tuple[int, ...]
    reads_scc: bool = False


def _logic(function: Callable[[int, int], int], width: int) -> Operation:
    def run(a: int, b: int, _: int) -> Result:
        value = function(a, b) & ((1 << width) - 1)
        return value, int(value != 0)

    return Operation(run, (width, width, width))


def _shift(function: Callable[[int, int], int], width: int) -> Operation:
    def run(a: int, b: int, _: int) -> Result:
        value = function(a, b & (width - 1)) & ((1 << width) - 1)
        return value, int(value != 0)

    return Operation(run, (width, width, 32))


def _plain(function: Callable[[int, int], int], *widths: int) -> Operation:
    return Operation(lambda a, b, _: (function(a, b), None), widths or (32, 32, 32))


def _add_i32(a: int, b: int, _: int) -> Result:
    total = signed(a, 32) + signed(b, 32)
    return total, int(not -(1 << 31) <= total < 1 << 31)


def _sub_i32(a: int, b: int, _: int) -> Result:
    total = signed(a, 32) - signed(b, 32)
    return total, int(not -(1 << 31) <= total < 1 << 31)


def _shift_add(shift: int) -> Operation:
    def run(a: int, b: int, _: int) -> Result:
        total = (a << shift) + b
        return total, int(total >> 32 != 0)

    return Operation(run, (32, 32, 32))


def _choose(better: Callable[[int, int], bool], is_signed: bool) -> Operation:
    """SCC: whether the first is chosen. Of equal ones a maximum chooses the first, as the CDNA3 and
    CDNA4 documents have it; Vega's says the second."""

    def run(a: int, b: int, _: int) -> Result:
        x, y = (signed(a, 32), signed(b, 32)) if is_signed else (a, b)
        return (a, 1) if better(x, y) else (b, 0)

    return Operation(run, (32, 32, 32))


def _extract(is_signed: bool, width: int) -> Operation:
    """b: the offset in its low 5 (or 6) bits, the number of bits in [22:16]."""

    def run(a: int, b: int, _: int) -> Result:
        count = b >> 16 & 0x7F
        value = (signed(a, width) if is_signed else a) >> (b & (width - 1)) & ((1 << count) - 1)
        if is_signed and count:
            value = signed(value, count)
        value &= (1 << width) - 1
        return value, int(value != 0)

    return Operation(run, (width, width, 32))


def _abs(a: int, _b: int, _: int) -> Result:
    value = abs(signed(a, 32))
    return value, int(value != 0)


def _absolute_difference(a: int, b: int, _: int) -> Result:
    """Of the difference cut to 32 bits."""
    value = abs(signed(a - b & 0xFFFFFFFF, 32))
    return value, int(value != 0)


def _first_one(a: int) -> int:
    return (a & -a).bit_length() - 1


def _leading_zeros(a: int, width: int) -> int:
    return width - a.bit_length() if a else -1


def _leading_signs(a: int, width: int) -> int:
    """How many of the highest bits are alike; -1 where all are."""
    return _leading_zeros(a ^ signed(a, width) >> width & (1 << width) - 1, width)


_LOGIC: dict[str, Callable[[int, int], int]] = {
    "and": lambda a, b: a & b,
    "or": lambda a, b: a | b,
    "xor": lambda a, b: a ^ b,
    "andn2": lambda a, b: a & ~b,
    "orn2": lambda a, b: a | ~b,
    "nand": lambda a, b: ~(a & b),
    "nor": lambda a, b: ~(a | b),
    "xnor": lambda a, b: ~(a ^ b),
}

_SAVEEXECS: dict[str, Callable[[int, int], int]] = {
    **_LOGIC,
    "andn1": lambda a, b: ~a & b,
    "orn1": lambda a, b: ~a | b,
}
"""Of the source and EXEC."""

OPERATIONS: dict[str, Operation] = {
    **{f"s_{name}_b{w}": _logic(f, w) for name, f in _LOGIC.items() for w in (32, 64)},
    "s_not_b32": replace(_logic(lambda a, _: ~a, 32), widths=(32, 32)),
    "s_not_b64": replace(_logic(lambda a, _: ~a, 64), widths=(64, 64)),
    "s_lshl_b32": _shift(lambda a, n: a << n, 32),
    "s_lshl_b64": _shift(lambda a, n: a << n, 64),
    "s_lshr_b32": _shift(lambda a, n: a >> n, 32),
    "s_lshr_b64": _shift(lambda a, n: a >> n, 64),
    "s_ashr_i32": _shift(lambda a, n: signed(a, 32) >> n, 32),
    "s_ashr_i64": _shift(lambda a, n: signed(a, 64) >> n, 64),
    "s_mov_b32": _plain(lambda a, _: a, 32, 32),
    "s_mov_b64": _plain(lambda a, _: a, 64, 64),
    "s_movk_i32": _plain(lambda a, _: a, 32, 16),
    "s_brev_b32": _plain(lambda a, _: int(f"{a:032b}"[::-1], 2), 32, 32),
    "s_ff1_i32_b32": _plain(lambda a, _: _first_one(a), 32, 32),
    "s_ff1_i32_b64": _plain(lambda a, _: _first_one(a), 32, 64),
    "s_ff0_i32_b32": _plain(lambda a, _: _first_one(~a & 0xFFFFFFFF), 32, 32),
    "s_flbit_i32_b32": _plain(lambda a, _: _leading_zeros(a, 32), 32, 32),
    "s_flbit_i32_b64": _plain(lambda a, _: _leading_zeros(a, 64), 32, 64),
    "s_flbit_i32": _plain(lambda a, _: _leading_signs(a, 32), 32, 32),
    "s_flbit_i32_i64": _plain(lambda a, _: _leading_signs(a, 64), 32, 64),
    "s_bcnt1_i32_b32": Operation(lambda a, b, _: (a.bit_count(), int(a != 0)), (32, 32)),
    "s_bcnt1_i32_b64": Operation(lambda a, b, _: (a.bit_count(), int(a != 0)), (32, 64)),
    "s_sext_i32_i8": _plain(lambda a, _: signed(a & 0xFF, 8), 32, 32),
    "s_sext_i32_i16": _plain(lambda a, _: signed(a & 0xFFFF, 16), 32, 32),
    "s_abs_i32": Operation(_abs, (32, 32)),
    "s_add_i32": Operation(_add_i32, (32, 32, 32)),
    "s_sub_i32": Operation(_sub_i32, (32, 32, 32)),
    "s_addk_i32": Operation(_add_i32, (32, 32, 16)),
    "s_add_u32": Operation(lambda a, b, _: (a + b, (a + b) >> 32), (32, 32, 32)),
    "s_sub_u32": Operation(lambda a, b, _: (a - b, int(a < b)), (32, 32, 32)),
    "s_addc_u32": Operation(lambda a, b, c: (a + b + c, (a + b + c) >> 32), (32, 32, 32), True),
    "s_subb_u32": Operation(lambda a, b, c: (a - b - c, int(a < b + c)), (32, 32, 32), True),
    "s_mul_i32": _plain(lambda a, b: a * b),
    "s_mulk_i32": _plain(lambda a, b: a * signed(b, 32), 32, 32, 16),
    "s_mul_hi_u32": _plain(lambda a, b: a * b >> 32),
    "s_mul_hi_i32": _plain(lambda a, b: signed(a, 32) * signed(b, 32) >> 32),
    "s_lshl1_add_u32": _shift_add(1),
    "s_lshl2_add_u32": _shift_add(2),
    "s_lshl3_add_u32": _shift_add(3),
    "s_lshl4_add_u32": _shift_add(4),
    "s_min_i32": _choose(lambda x, y: x < y, True),
    "s_max_i32": _choose(lambda x, y: x >= y, True),
    "s_min_u32": _choose(lambda x, y: x < y, False),
    "s_max_u32": _choose(lambda x, y: x >= y, False),
    "s_bfe_u32": _extract(False, 32),
    "s_bfe_i32": _extract(True, 32),
    "s_bfe_u64": _extract(False, 64),
    "s_bfe_i64": _extract(True, 64),
    "s_bfm_b32": _plain(lambda a, b: ((1 << (a & 31)) - 1) << (b & 31)),
    "s_bfm_b64": _plain(lambda a, b: ((1 << (a & 63)) - 1) << (b & 63), 64, 32, 32),
    "s_absdiff_i32": Operation(_absolute_difference, (32, 32, 32)),
    "s_bitset0_b32": _plain(lambda a, b: a & ~(1 << (b & 31))),
    "s_bitset0_b64": _plain(lambda a, b: a & ~(1 << (b & 63)), 64, 64, 32),
    "s_bitset1_b32": _plain(lambda a, b: a | 1 << (b & 31)),
    "s_bitset1_b64": _plain(lambda a, b: a | 1 << (b & 63), 64, 64, 32),
    "s_cselect_b32": Operation(lambda a, b, c: (a if c else b, None), (32, 32, 32), True),
    "s_cselect_b64": Operation(lambda a, b, c: (a if c else b, None), (64, 64, 64), True),
    "s_pack_ll_b32_b16": _plain(lambda a, b: a & 0xFFFF | b << 16),
    "s_pack_lh_b32_b16": _plain(lambda a, b: a & 0xFFFF | b & 0xFFFF0000),
    "s_pack_hh_b32_b16": _plain(lambda a, b: a >> 16 | b & 0xFFFF0000),
}

_READ_DESTINATION = {
    "s_addk_i32",
    "s_mulk_i32",
    *(f"s_bitset{bit}_b{width}" for bit in (0, 1) for width in (32, 64)),
}
"""Their first source is the destination, which the text does not repeat."""

_COMPARE: dict[str, Callable[[int, int], bool]] = {
    "lt": lambda a, b: a < b,
    "le": lambda a, b: a <= b,
    "gt": lambda a, b: a > b,
    "ge": lambda a, b: a >= b,
    "eq": lambda a, b: a == b,
    "lg": lambda a, b: a != b,
}
_CMP = re.compile(r"s_cmp(k?)_(lt|le|gt|ge|eq|lg)_([iu])(32|64)")
_BIT_TEST = re.compile(r"s_bitcmp([01])_b(32|64)")
_SAVEEXEC = re.compile(r"s_(\w+)_saveexec_b64")


def bind(instruction: Instruction, _: Context) -> Execute | None:
    """None for a mnemonic of another family."""
    name = instruction.mnemonic
    if operation := OPERATIONS.get(name):
        return _bind_operation(instruction, operation)
    if match := _CMP.fullmatch(name):
        return _bind_compare(instruction, *match.groups())
    if match := _BIT_TEST.fullmatch(name):
        return _bind_bit_test(instruction, int(match[1]), int(match[2]))
    if match := _SAVEEXEC.fullmatch(name):
        return _bind_saveexec(instruction, match[1])
    return None


def reader(operand: Operand, width: int) -> Callable[[Wave], int]:
    """A scalar source as an unsigned int; width 16: SOPK's immediate, sign-extended to 32 bits."""
    if operand.modified:
        raise UnsupportedInstruction(f"operand {operand.text!r} of a scalar instruction")
    if operand.kind == "scalar":
        register, count = operand.register, width // 32
        if operand.count != count:
            raise UnsupportedInstruction(f"operand {operand.text!r} for {width} bits")
        return lambda wave: wave.read_scalars(register, count)
    value = operand.bits(32) if width == 16 else operand.bits(width)
    if width == 16:
        value = signed(value & 0xFFFF, 16) & 0xFFFFFFFF
    return lambda wave: value


def destination(operand: Operand, count: int) -> int:
    """The first of the `count` scalar registers that an instruction writes."""
    if operand.kind != "scalar" or operand.count != count or operand.modified:
        raise UnsupportedInstruction(f"destination {operand.text!r}")
    return operand.register


def undefined_reader(operands: tuple[Operand, ...]) -> Callable[[Wave], bool]:
    """Whether any bit of these sources is undefined."""
    registers = [r for operand in operands for r in operand.registers]
    return lambda wave: any(wave.undefined[r] for r in registers)


def _bind_operation(instruction: Instruction, operation: Operation) -> Execute:
    widths, operands = operation.widths, instruction.operands
    if instruction.mnemonic in _READ_DESTINATION:
        operands = (operands[0], *operands)
    if len(operands) != len(widths):
        raise UnsupportedInstruction(f"{instruction.mnemonic} with {len(operands)} operands")
    read_a = reader(operands[1], widths[1])
    read_b = reader(operands[2], widths[2]) if len(widths) > 2 else lambda _: 0
    count = widths[0] // 32
    target = destination(operands[0], count)
    spread = _undefined_result(instruction, operation, operands[1:])

    def execute(wave: Wave) -> None:
        undefined = spread(wave)
        value, scc = operation.function(read_a(wave), read_b(wave), wave.scc)
        wave.write_scalars(target, count, value, undefined)
        if scc is not None:
            wave.scc, wave.scc_undefined = scc, undefined != 0

    return execute


def _undefined_result(
    instruction: Instruction, operation: Operation, sources: tuple[Operand, ...]
) -> Callable[[Wave], int]:
    """Which bits of the result are undefined: for and, or, xor and moves bit by bit, else all."""
    width = operation.widths[0]
    everything = (1 << width) - 1
    any_undefined = undefined_reader(sources)
    name = instruction.mnemonic.removeprefix("s_").rsplit("_", 1)[0]
    bitwise = _BITWISE.get(name)

    def spread(wave: Wave) -> int:
        if operation.reads_scc and wave.scc_undefined:
            return everything
        if not any_undefined(wave):
            return 0
        if bitwise is None:
            return everything
        values = [reader(s, width)(wave) for s in sources]
        masks = [
            wave.undefined_bits(s.register, width // 32) if s.is_register else 0 for s in sources
        ]
        return bitwise(values, masks, wave.scc) & everything

    return spread


def _and_undefined(x: int, y: int, ux: int, uy: int) -> int:
    """A defined 0 on either side decides."""
    return (ux | uy) & (x | ux) & (y | uy)


_BITWISE: dict[str, Callable[[list[int], list[int], int], int]] = {
    "mov": lambda v, u, scc: u[0],
    "not": lambda v, u, scc: u[0],
    "xor": lambda v, u, scc: u[0] | u[1],
    "cselect": lambda v, u, scc: u[0] if scc else u[1],
    "and": lambda v, u, scc: _and_undefined(v[0], v[1], u[0], u[1]),
    "andn2": lambda v, u, scc: _and_undefined(v[0], ~v[1], u[0], u[1]),
    "or": lambda v, u, scc: _and_undefined(~v[0], ~v[1], u[0], u[1]),
    "orn2": lambda v, u, scc: _and_undefined(~v[0], v[1], u[0], u[1]),
}


def _bind_compare(instruction: Instruction, k: str, name: str, sign: str, bits: str) -> Execute:
    instruction.expect(2)
    width, compare = int(bits), _COMPARE[name]
    first, second = instruction.operands
    read_a = reader(first, width)
    immediate = second.bits(32) & 0xFFFF if k and sign == "u" else None
    read_b = reader(second, 16 if k else width)
    undefined = undefined_reader(instruction.operands)

    def execute(wave: Wave) -> None:
        a, b = read_a(wave), read_b(wave) if immediate is None else immediate
        if sign == "i":
            a, b = signed(a, width), signed(b, width)
        wave.scc, wave.scc_undefined = int(compare(a, b)), undefined(wave)

    return execute


def _bind_bit_test(instruction: Instruction, wanted: int, width: int) -> Execute:
    instruction.expect(2)
    tested, place = instruction.operands
    read_a, read_b = reader(tested, width), reader(place, 32)
    undefined = undefined_reader(instruction.operands)

    def execute(wave: Wave) -> None:
        wave.scc = int(read_a(wave) >> (read_b(wave) & (width - 1)) & 1 == wanted)
        wave.scc_undefined = undefined(wave)

    return execute


def _bind_saveexec(instruction: Instruction, name: str) -> Execute:
    instruction.expect(2)
    if name not in _SAVEEXECS:
        raise UnsupportedInstruction(f"{instruction.mnemonic} is not implemented")
    function, target = _SAVEEXECS[name], destination(instruction.operands[0], 2)
    read = reader(instruction.operands[1], 64)
    undefined, bitwise = undefined_reader(instruction.operands[1:]), _BITWISE.get(name)
    register = instruction.operands[1].register

    def execute(wave: Wave) -> None:
        before = wave.exec
        value = function(read(wave), before) & ((1 << 64) - 1)
        if undefined(wave):
            unknown = wave.undefined_bits(register, 2)
            if bitwise is None or bitwise([read(wave), before], [unknown, 0], 0) & ((1 << 64) - 1):
                raise UndefinedValue("EXEC is set from an undefined value")
        wave.write_scalars(target, 2, before)
        wave.write_scalars(EXEC, 2, value)
        wave.scc, wave.scc_undefined = int(value != 0), False

    return execute
