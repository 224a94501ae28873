"""Vector memory: global_* and buffer_* loads and stores, and scalar loads.

CDNA3 ISA sections 9 (vector memory), 8 (scalar memory), 9.1.5 (buffer addressing). An access is
checked when it is issued and takes effect when a wait lands it, as late as the hardware may be.
"""

import re
from collections.abc import Callable

import numpy as np

from glm_portable.virtual.cdna.decoded import Context, Execute
from glm_portable.virtual.cdna.faults import OutOfBounds, UnsupportedInstruction
from glm_portable.virtual.cdna.lanes import LANE, LANES, Booleans, first_lane, to_mask
from glm_portable.virtual.cdna.memory import Addresses
from glm_portable.virtual.cdna.operands import M0, Operand
from glm_portable.virtual.cdna.parser import Instruction
from glm_portable.virtual.cdna.scalar import reader
from glm_portable.virtual.cdna.sources import raw, source
from glm_portable.virtual.cdna.state import Wave
from glm_portable.virtual.cdna.transfer import Transfer, transfer_named

Locate = Callable[[Wave], tuple[Addresses, Booleans]]
"""The byte address of every lane, shape (64,), and the lanes that take part."""

_VECTOR = re.compile(r"(global|buffer)_(load|store)_(lds_)?(\w+)")
_SCALAR_LOAD = re.compile(r"s_load_dword(?:x(\d+))?")
_BASE_MASK = (1 << 48) - 1


def bind(instruction: Instruction, _: Context) -> Execute | None:
    """None for a mnemonic of another family."""
    name = instruction.mnemonic
    if match := _SCALAR_LOAD.fullmatch(name):
        return _bind_scalar_load(instruction, int(match[1] or 1))
    if name in ("buffer_wbl2", "buffer_inv"):
        return _bind_cache_control(instruction)
    match = _VECTOR.fullmatch(name)
    transfer = transfer_named(match[4]) if match else None
    if match is None or transfer is None:
        return None
    for hint in ("sc0", "sc1", "nt"):  # cache policy
        instruction.modifiers.flag(hint)
    to_lds = bool(match[3]) or instruction.modifiers.flag("lds")
    operands = list(instruction.operands)
    data = None if to_lds else operands.pop(1 if match.group(1, 2) == ("global", "store") else 0)
    locate = _locate(instruction, match[1], operands, transfer.width)
    if data is None:
        return _bind_load_to_lds(locate, transfer)
    if data.kind != "vector" or data.count != transfer.registers:
        raise UnsupportedInstruction(f"data operand {data.text!r}")
    return (_bind_load if match[2] == "load" else _bind_store)(data, locate, transfer)


def _bind_cache_control(instruction: Instruction) -> Execute:
    """Caches are not modelled; vmcnt counts the instruction, as LLVM does."""
    for hint in ("sc0", "sc1", "nt"):
        instruction.modifiers.flag(hint)
    return lambda wave: wave.issue("vector", (), lambda: None)


def _locate(instruction: Instruction, space: str, operands: list[Operand], width: int) -> Locate:
    if space == "global":
        return locate_global(instruction, operands)
    return locate_buffer(instruction, operands, width)


def locate_global(instruction: Instruction, operands: list[Operand]) -> Locate:
    """A 64-bit address a lane (saddr is off), or a scalar base and a 32-bit unsigned offset."""
    if len(operands) != 2:
        raise UnsupportedInstruction(f"{instruction.mnemonic}: operands")
    vector, base = operands
    offset = instruction.modifiers.integer("offset")
    read = source(vector, "U" if base.kind == "off" else "u")
    read_base = reader(base, 64) if base.kind == "scalar" else lambda wave: 0

    def locate(wave: Wave) -> tuple[Addresses, Booleans]:
        wave.require_defined("address", vector.registers)
        wave.require_defined("base address", base.registers)
        return read(wave).astype(np.int64) + (read_base(wave) + offset), wave.lanes

    return locate


def locate_buffer(instruction: Instruction, operands: list[Operand], width: int) -> Locate:
    """Raw buffers: base + soffset + offset. Lanes outside load 0 and do not store.

    Sources differ on whether a lane is outside if offset >= num_records, or num_records - soffset.
    A lane that is inside by one rule alone, or by a part of its bytes (which components of more
    than a dword may be), is refused.
    """
    if len(operands) != 3:
        raise UnsupportedInstruction(f"{instruction.mnemonic}: operands")
    vector, resource, scalar = operands
    immediate = instruction.modifiers.integer("offset")
    offen = instruction.modifiers.flag("offen")
    if resource.kind != "scalar" or resource.count != 4:
        raise UnsupportedInstruction(f"buffer resource {resource.text!r}")
    read_offset = raw(vector) if offen else lambda wave: np.zeros(LANES, np.uint32)
    read_scalar = reader(scalar, 32)

    def locate(wave: Wave) -> tuple[Addresses, Booleans]:
        if offen:
            wave.require_defined("offset", vector.registers)
        wave.require_defined("buffer resource", resource.registers)
        wave.require_defined("scalar offset", scalar.registers)
        descriptor = wave.read_scalars(resource.register, 4)
        _require_raw(descriptor)
        limit, soffset = descriptor >> 64 & 0xFFFFFFFF, read_scalar(wave)
        offsets = read_offset(wave).astype(np.int64) + immediate
        inside = wave.lanes & (offsets < limit)
        unsure = inside & (offsets + (width + soffset) > limit)
        if unsure.any():
            lane = first_lane(unsure)
            reason = f"buffer access at the limit of {limit} bytes, by one rule outside it"
            raise OutOfBounds(reason, lane, int(offsets[lane]) + soffset)
        return offsets + ((descriptor & _BASE_MASK) + soffset), inside

    return locate


def _require_raw(descriptor: int) -> None:
    """Refuse strides and swizzles, which Triton does not use (ISA section 9.1.5.1)."""
    if descriptor >> 48 & 0xFFFF:
        raise UnsupportedInstruction("a buffer resource with a stride or swizzle")


def _bind_load(data: Operand, locate: Locate, transfer: Transfer) -> Execute:
    registers = tuple(data.registers)

    def execute(wave: Wave) -> None:
        addresses, inside = locate(wave)
        enabled, mask = wave.lanes, wave.exec
        memory = wave.workgroup.memory
        chosen = addresses[inside]
        if len(chosen):
            memory.check(chosen, transfer.width, inside)

        def land() -> None:
            values = np.zeros((LANES, transfer.width), np.uint8)
            if len(chosen):
                values[inside] = memory.read(chosen, transfer.width)
            transfer.to_registers(wave, data.register, values, enabled, mask)

        wave.issue("vector", registers, land)

    return execute


def _bind_store(data: Operand, locate: Locate, transfer: Transfer) -> Execute:
    def execute(wave: Wave) -> None:
        addresses, inside = locate(wave)
        chosen = addresses[inside]
        memory = wave.workgroup.memory
        if not len(chosen):
            wave.issue("vector", (), lambda: None)
            return
        memory.check(chosen, transfer.width, inside, store=True)
        wave.require_defined("stored value", data.registers, to_mask(inside))
        values = transfer.from_registers(wave, data.register, inside)
        wave.issue("vector", (), lambda: memory.write(chosen, values))

    return execute


def _bind_load_to_lds(locate: Locate, transfer: Transfer) -> Execute:
    """Lane i's bytes go to LDS at M0 + i * width (ISA section 9.1.9); one that is outside the
    buffer puts zeros."""

    def execute(wave: Wave) -> None:
        addresses, inside = locate(wave)
        wave.require_defined("M0", range(M0, M0 + 1))
        lanes, group = wave.lanes, wave.workgroup
        offsets = (wave.read_scalars(M0, 1) + LANE * transfer.width)[lanes]
        group.lds.check(offsets, transfer.width, lanes)
        chosen, began = addresses[inside], group.epoch
        if len(chosen):
            group.memory.check(chosen, transfer.width, inside)

        def land() -> None:
            values = np.zeros((LANES, transfer.width), np.uint8)
            if len(chosen):
                values[inside] = group.memory.read(chosen, transfer.width)
            if len(offsets):
                group.lds.write(offsets, values[lanes], None, wave.index, began, group.epoch)

        wave.issue("vector", (), land)

    return execute


def _bind_scalar_load(instruction: Instruction, count: int) -> Execute:
    """`count` registers from base + offset, the lowest two bits of the address dropped."""
    instruction.expect(3)
    target, base, offset = instruction.operands
    if target.kind != "scalar" or target.count != count:
        raise UnsupportedInstruction(f"destination {target.text!r}")
    read_base, read_offset = reader(base, 64), reader(offset, 32)
    registers = tuple(target.registers)

    def execute(wave: Wave) -> None:
        wave.require_defined("base address", base.registers)
        wave.require_defined("offset", offset.registers)
        address = np.array([(read_base(wave) + read_offset(wave)) & ~3], np.int64)
        memory = wave.workgroup.memory
        memory.check(address, 4 * count, np.ones(1, np.bool_))

        def land() -> None:
            value = int.from_bytes(memory.read(address, 4 * count).tobytes(), "little")
            wave.write_scalars(target.register, count, value)

        wave.issue("scalar", registers, land)

    return execute
