"""LDS instructions (CDNA3 ISA section 10 and 12.13): reads, writes, lane permutations, and
CDNA4's transposing reads."""

import re
from collections.abc import Callable

import numpy as np

from glm_portable.virtual.cdna.decoded import Context, Execute
from glm_portable.virtual.cdna.faults import UnsupportedInstruction
from glm_portable.virtual.cdna.lanes import ALL, LANE, LANES, Booleans, Vector, to_booleans, to_mask
from glm_portable.virtual.cdna.memory import Addresses, Bytes
from glm_portable.virtual.cdna.operands import Operand
from glm_portable.virtual.cdna.parser import Instruction, Modifiers
from glm_portable.virtual.cdna.sources import raw
from glm_portable.virtual.cdna.state import Wave
from glm_portable.virtual.cdna.transfer import Transfer

_NAME = re.compile(r"ds_(read|write)(2st64|2|)_([bui])(\d+)(_d16_hi|_d16|)")
_TRANSPOSED = {"ds_read_b64_tr_b16": 2, "ds_read_b64_tr_b8": 1}


def bind(instruction: Instruction, _: Context) -> Execute | None:
    """None for a mnemonic of another family."""
    name = instruction.mnemonic
    if name in ("ds_bpermute_b32", "ds_permute_b32", "ds_swizzle_b32"):
        return _bind_permute(instruction)
    if name in _TRANSPOSED:
        return _bind_transposed_read(instruction, _TRANSPOSED[name])
    match = _NAME.fullmatch(name)
    if match is None:
        return None
    operation, pair, sign, bits, half = match.groups()
    which = {"": "whole", "_d16": "low", "_d16_hi": "high"}
    transfer = Transfer(int(bits) // 8, sign == "i", which[half])  # type: ignore[arg-type]
    offsets = _offsets(instruction.modifiers, pair, transfer.width)
    return (_bind_read if operation == "read" else _bind_write)(instruction, transfer, offsets)


def _offsets(modifiers: Modifiers, pair: str, width: int) -> list[int]:
    if not pair:
        return [modifiers.integer("offset")]
    unit = width * (64 if pair == "2st64" else 1)
    return [unit * modifiers.integer(name) for name in ("offset0", "offset1")]


def _bind_read(instruction: Instruction, transfer: Transfer, offsets: list[int]) -> Execute:
    instruction.expect(2)
    target, address = instruction.operands
    count = transfer.registers
    if target.kind != "vector" or target.count != count * len(offsets):
        raise UnsupportedInstruction(f"destination {target.text!r}")
    registers = tuple(target.registers)

    def execute(wave: Wave) -> None:
        places = [_locate(wave, address, offset, transfer.width) for offset in offsets]
        lanes, mask, began = wave.lanes, wave.exec, wave.workgroup.epoch

        def land() -> None:
            if not mask:
                return
            for i, place in enumerate(places):
                raw_bytes, undefined = _read(wave, place, transfer.width, began)
                values = np.zeros((LANES, transfer.width), np.uint8)
                values[lanes] = raw_bytes
                first = target.register + i * count
                transfer.to_registers(wave, first, values, lanes, mask)
                _mark(wave, first, count, lanes, undefined)

        wave.issue("lds", registers, land)

    return execute


def _bind_write(instruction: Instruction, transfer: Transfer, offsets: list[int]) -> Execute:
    instruction.expect(1 + len(offsets))
    address, *data = instruction.operands
    if any(d.kind != "vector" or d.count != transfer.registers for d in data):
        raise UnsupportedInstruction("data of another size")

    def execute(wave: Wave) -> None:
        mask, began = wave.exec, wave.workgroup.epoch
        writes = [
            (
                _locate(wave, address, offset, transfer.width),
                transfer.from_registers(wave, operand.register, wave.lanes),
                _undefined_rows(wave, operand),
            )
            for operand, offset in zip(data, offsets, strict=True)
        ]

        def land() -> None:
            group = wave.workgroup
            for place, values, undefined in writes if mask else []:
                group.lds.write(place, values, undefined, wave.index, began, group.epoch)

        wave.issue("lds", (), land)

    return execute


def _locate(wave: Wave, address: Operand, offset: int, width: int) -> Addresses:
    """The LDS offsets of the enabled lanes, checked against the allocation."""
    wave.require_defined("LDS address", address.registers)
    offsets: Addresses = wave.vectors[address.register].astype(np.int64)[wave.lanes] + offset
    wave.workgroup.lds.check(offsets, width, wave.lanes)
    return offsets


def _read(wave: Wave, place: Addresses, width: int, began: int) -> tuple[Bytes, Booleans]:
    group = wave.workgroup
    return group.lds.read(place, width, wave.index, began, group.epoch)


def _undefined_rows(wave: Wave, operand: Operand) -> Booleans | None:
    mask = wave.undefined_lanes(tuple(operand.registers)) & wave.exec
    return to_booleans(mask)[wave.lanes] if mask else None


def _mark(wave: Wave, first: int, count: int, lanes: Booleans, undefined: Booleans) -> None:
    if undefined.any():
        every = np.zeros(LANES, np.bool_)
        every[lanes] = undefined
        for register in range(first, first + count):
            wave.undefined[register] |= to_mask(every)


def _bind_transposed_read(instruction: Instruction, element: int) -> Execute:
    """DS_READ_B64_TR_B16 / _B8: the 16 lanes of a row address 8 bytes each, together a matrix of
    rows of 16 elements, and each lane receives one of its columns."""
    instruction.expect(2)
    target, address = instruction.operands
    offset = instruction.modifiers.integer("offset")
    source, column = _transposition(8 // element)
    registers = tuple(target.registers)

    def execute(wave: Wave) -> None:
        place, began = _locate(wave, address, offset, 8), wave.workgroup.epoch
        if wave.exec != ALL:
            raise UnsupportedInstruction("a transposing read with lanes disabled")

        def land() -> None:
            values, undefined = _read(wave, place, 8, began)
            elements = values.reshape(LANES, 8 // element, element)
            moved = np.ascontiguousarray(elements[source, column].reshape(LANES, 8))
            words = moved.view(np.uint32)
            unknown = to_mask(np.logical_or.reduce(undefined[source], axis=1))
            for i in range(2):
                wave.vectors[target.register + i] = words[:, i]
                wave.undefined[target.register + i] = unknown

        wave.issue("lds", registers, land)

    return execute


def _transposition(count: int) -> tuple[Vector, Vector]:
    """For each lane and each of its `count` elements, the lane it comes from and the place there;
    both (64, count)."""
    lane, r = LANE[:, None], np.arange(count)[None, :]
    per_row = 16 // count  # lanes that hold a row of 16 elements
    source = lane // 16 * 16 + per_row * r + lane % 16 // count
    return source, np.broadcast_to(lane % count, source.shape)


def _bind_permute(instruction: Instruction) -> Execute:
    if instruction.mnemonic == "ds_swizzle_b32":
        instruction.expect(2)
        target, data = instruction.operands
        chosen = _swizzle(instruction.modifiers.take("offset") or "")
        return _bind_gather(target, data, None, lambda wave: chosen)
    instruction.expect(3)
    target, index, data = instruction.operands
    offset = instruction.modifiers.integer("offset")
    read = raw(index)

    def named(wave: Wave) -> Vector:
        return (read(wave).astype(np.int64) + offset) // 4 % LANES

    if instruction.mnemonic == "ds_bpermute_b32":
        return _bind_gather(target, data, index, named)

    def senders(wave: Wave) -> Vector:
        """Of lanes that send to one lane the last wins."""
        chosen = np.full(LANES, -1)
        chosen[named(wave)[wave.lanes]] = LANE[wave.lanes]
        return chosen

    return _bind_gather(target, data, index, senders)


def _bind_gather(
    target: Operand, data: Operand, index: Operand | None, choose: Callable[[Wave], Vector]
) -> Execute:
    """Each lane receives another lane's value; 0 of none (-1) or one that EXEC disables."""
    read = raw(data)

    def execute(wave: Wave) -> None:
        if index is not None:
            wave.require_defined("lane number", index.registers)
        chosen, lanes, mask = choose(wave), wave.lanes, wave.exec
        sent = lanes[chosen] & (chosen >= 0)
        values = np.where(sent, read(wave)[chosen], 0).astype(np.uint32)
        before = wave.undefined_lanes(tuple(data.registers))
        unknown = to_mask(to_booleans(before)[chosen] & sent) if before else 0

        def land() -> None:
            np.copyto(wave.vectors[target.register], values, where=lanes)
            kept = wave.undefined[target.register] & ~mask
            wave.undefined[target.register] = kept | unknown & mask

        wave.issue("lds", tuple(target.registers), land)

    return execute


def _swizzle(text: str) -> Vector:
    """The lane each lane reads, of offset:swizzle(MODE, ...) (ISA section 12.13.1)."""
    match = re.fullmatch(r"swizzle\((\w+),(.*)\)", text)
    if match is None:
        raise UnsupportedInstruction(f"ds_swizzle_b32 offset:{text}")
    mode, argument = match[1], match[2]
    if mode == "SWAP":
        return LANE ^ int(argument)
    if mode == "REVERSE":
        return LANE ^ (int(argument) - 1)
    if mode == "QUAD_PERM":
        chosen: Vector = np.array([int(x) for x in argument.split(",")])
        return LANE // 4 * 4 + chosen[LANE % 4]
    if mode == "BROADCAST":
        size, lane = (int(x) for x in argument.split(","))
        return LANE // size * size + lane
    if mode == "BITMASK_PERM":
        return _bitmask_lanes(argument.strip('"'))
    raise UnsupportedInstruction(f"swizzle mode {mode}")


def _bitmask_lanes(pattern: str) -> Vector:
    """Five characters for bits 4 to 0 of the lane within 32: 0, 1, p (preserve), i (invert)."""
    result = LANE // 32 * 32
    for place, character in zip(range(4, -1, -1), pattern, strict=True):
        bit = LANE >> place & 1
        chosen = {"0": 0 * bit, "1": 0 * bit + 1, "p": bit, "i": 1 - bit}[character]
        result = result + (chosen << place)
    return result
