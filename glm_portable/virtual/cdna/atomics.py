"""Atomic operations on global memory (CDNA3 ISA sections 9.1.10, 12.15 and 12.16) and LDS (12.13).

Lanes take effect one after the other, in order, when a wait lands the instruction; so do the waves.
Hardware has no order of its own: sums of floats may differ in the last bits.
"""

import functools
import re
from collections.abc import Callable
from typing import Any

import numpy as np

from glm_portable.virtual.cdna.decoded import Context, Execute
from glm_portable.virtual.cdna.faults import UnsupportedInstruction
from glm_portable.virtual.cdna.lanes import LANES, signed, to_booleans, to_mask
from glm_portable.virtual.cdna.memory import Bytes
from glm_portable.virtual.cdna.operands import Operand
from glm_portable.virtual.cdna.parser import Instruction
from glm_portable.virtual.cdna.state import Wave
from glm_portable.virtual.cdna.transfer import Transfer
from glm_portable.virtual.cdna.vmem import locate_buffer, locate_global

Update = Callable[[int, int], int]
"""The new bits of the old ones and the operand's; a cmpswap's operand holds both its values."""

_GLOBAL = re.compile(r"(global|buffer)_atomic_(\w+?)(_x2)?")
_LOCAL = re.compile(r"ds_(add|sub|min|max|and|or|xor)_(rtn_)?([uifb])(32|64)")


def bind(instruction: Instruction, _: Context) -> Execute | None:
    """None for a mnemonic of another family."""
    name = instruction.mnemonic
    if match := _LOCAL.fullmatch(name):
        sign = {"i": "s", "u": "u"}.get(match[3], "") if match[1] in ("min", "max") else ""
        suffix = f"_f{match[4]}" if match[3] == "f" else ""
        return _bind_local(instruction, sign + match[1] + suffix, int(match[4]), bool(match[2]))
    if match := _GLOBAL.fullmatch(name):
        wide = bool(match[3]) or name.endswith("f64")
        return _bind_global(instruction, match[1], match[2], 64 if wide else 32)
    return None


def _bind_global(instruction: Instruction, space: str, operation: str, bits: int) -> Execute:
    """sc0: the value from before is returned (into the data's registers for buffer_*)."""
    returns = instruction.modifiers.flag("sc0")
    for hint in ("sc1", "nt"):
        instruction.modifiers.flag(hint)
    update, width = _update(operation, bits), bits // 8
    transfer = Transfer(2 * width if operation == "cmpswap" else width)
    operands = list(instruction.operands)
    target = operands[0]
    if space == "global":
        data = operands.pop(2 if returns else 1)
        locate = locate_global(instruction, operands[1:] if returns else operands)
    else:
        data = operands.pop(0)
        locate = locate_buffer(instruction, operands, width)
    _require(data, transfer.registers)
    result = Transfer(width)
    registers = tuple(range(target.register, target.register + result.registers)) * returns

    def execute(wave: Wave) -> None:
        addresses, inside = locate(wave)
        memory, chosen = wave.workgroup.memory, addresses[inside]
        lanes, mask = wave.lanes, wave.exec
        if len(chosen):
            memory.check(chosen, width, inside, store=True)
            wave.require_defined("atomic operand", data.registers, to_mask(inside))
        values = transfer.from_registers(wave, data.register, inside)

        def land() -> None:
            before = np.zeros((LANES, width), np.uint8)
            places = np.flatnonzero(inside)
            for i in range(len(chosen)):
                old = memory.read(chosen[i : i + 1], width)
                memory.write(chosen[i : i + 1], _applied(update, values[i], old[0])[None])
                before[places[i]] = old
            if returns:
                result.to_registers(wave, target.register, before, lanes, mask)

        wave.issue("vector", registers, land)

    return execute


def _bind_local(instruction: Instruction, operation: str, bits: int, returns: bool) -> Execute:
    instruction.expect(3 if returns else 2)
    target, address, data = (*instruction.operands[:1] * (not returns), *instruction.operands)
    offset, width = instruction.modifiers.integer("offset"), bits // 8
    update, transfer = _update(operation, bits), Transfer(width)
    _require(data, transfer.registers)
    registers = tuple(target.registers) * returns

    def execute(wave: Wave) -> None:
        wave.require_defined("LDS address", address.registers)
        group, lanes, mask = wave.workgroup, wave.lanes, wave.exec
        began = group.epoch
        places = wave.vectors[address.register].astype(np.int64)[lanes] + offset
        group.lds.check(places, width, lanes)
        wave.require_defined("atomic operand", data.registers)
        values = transfer.from_registers(wave, data.register, lanes)

        def land() -> None:
            before = np.zeros((LANES, width), np.uint8)
            unknown = 0
            for i, lane in enumerate(np.flatnonzero(to_booleans(mask))):
                change = functools.partial(_applied, update, values[i])
                before[lane], undefined = group.lds.update(
                    places[i : i + 1], width, change, wave.index, began, group.epoch
                )
                unknown |= int(undefined) << int(lane)
            if returns:
                transfer.to_registers(wave, target.register, before, lanes, mask)
                for register in registers:
                    wave.undefined[register] |= unknown

        wave.issue("lds", registers, land)

    return execute


def _require(data: Operand, registers: int) -> None:
    if data.kind != "vector" or data.count != registers:
        raise UnsupportedInstruction(f"data operand {data.text!r}")


def _applied(update: Update, value: Bytes, old: Bytes) -> Bytes:
    """Both as bytes, little end first."""
    bits = update(
        int.from_bytes(old.tobytes(), "little"), int.from_bytes(value.tobytes(), "little")
    )
    width = old.size
    return np.frombuffer((bits & ((1 << 8 * width) - 1)).to_bytes(width, "little"), np.uint8)


def _update(name: str, bits: int) -> Update:
    if name == "cmpswap":  # the operand: the new value, then the one to compare with
        return lambda old, both: both if old == both >> bits else old
    if name in _FLOAT:
        return _float_update(_FLOAT[name], bits)
    if name in _PACKED:
        return _PACKED[name]
    if name not in _INTEGER:
        raise UnsupportedInstruction(f"atomic operation {name}")
    function = _INTEGER[name]
    if name in ("smin", "smax"):
        return lambda old, value: function(signed(old, bits), signed(value, bits))
    return function


def _float_update(function: Callable[..., Any], bits: int) -> Update:
    unsigned, kind = (np.uint64, np.float64) if bits == 64 else (np.uint32, np.float32)

    def update(old: int, value: int) -> int:
        both = np.array([old, value], unsigned).view(kind)
        return int(np.array([function(both[0], both[1])], kind).view(unsigned)[0])

    return update


def _packed_sum(to_float: Callable[[int], np.float32], to_bits: Callable[..., int]) -> Update:
    def update(old: int, value: int) -> int:
        halves = [
            to_bits(to_float(old >> shift & 0xFFFF) + to_float(value >> shift & 0xFFFF))
            for shift in (0, 16)
        ]
        return halves[0] | halves[1] << 16

    return update


def _from_f16(bits: int) -> np.float32:
    return np.float32(np.uint16(bits).view(np.float16))


def _from_bf16(bits: int) -> np.float32:
    return np.uint32(bits << 16).view(np.float32)


def _to_f16(value: np.float32) -> int:
    return int(np.float16(value).view(np.uint16))


def _to_bf16(value: np.float32) -> int:
    """To the nearest, ties to even."""
    bits = int(np.float32(value).view(np.uint32))
    return bits >> 16 | 0x40 if value != value else (bits + 0x7FFF + (bits >> 16 & 1)) >> 16


_INTEGER: dict[str, Update] = {
    "add": lambda old, value: old + value,
    "sub": lambda old, value: old - value,
    "smin": min,
    "smax": max,
    "umin": min,
    "umax": max,
    "and": lambda old, value: old & value,
    "or": lambda old, value: old | value,
    "xor": lambda old, value: old ^ value,
    "swap": lambda old, value: value,
}
_FLOAT: dict[str, Callable[..., Any]] = {
    "add_f32": lambda a, b: a + b,
    "add_f64": lambda a, b: a + b,
    "min_f64": np.fmin,
    "max_f64": np.fmax,
    "min_f32": np.fmin,
    "max_f32": np.fmax,
}
_PACKED = {
    "pk_add_f16": _packed_sum(_from_f16, _to_f16),
    "pk_add_bf16": _packed_sum(_from_bf16, _to_bf16),
}
