"""The compiler's own record inside an AMD code object: the NT_AMDGPU_METADATA note.

The note is MessagePack (LLVM, "User Guide for AMDGPU Backend", code object V5). A reader of 60
lines is the second opinion on what the assembly's comments say, so it shares no code with them.
"""

import struct
from typing import Any

EM_AMDGPU = 224
PT_NOTE = 4
NT_AMDGPU_METADATA = 32

_FIXED = {
    0xCA: ">f", 0xCB: ">d", 0xCC: ">B", 0xCD: ">H", 0xCE: ">I", 0xCF: ">Q",
    0xD0: ">b", 0xD1: ">h", 0xD2: ">i", 0xD3: ">q",
}  # fmt: skip
_CONSTANTS = {0xC0: None, 0xC2: False, 0xC3: True}
_SIZES = {
    0xD9: ("str", ">B"), 0xDA: ("str", ">H"), 0xDB: ("str", ">I"),
    0xDC: ("list", ">H"), 0xDD: ("list", ">I"), 0xDE: ("map", ">H"), 0xDF: ("map", ">I"),
}  # fmt: skip


def unpack(data: bytes) -> Any:
    """Decode one MessagePack value (no binary or extension types, which the note has not)."""
    value, end = _value(data, 0)
    if end != len(data):
        raise ValueError(f"{len(data) - end} bytes follow the MessagePack value")
    return value


def _value(data: bytes, at: int) -> tuple[Any, int]:
    tag = data[at]
    if tag < 0x80 or tag >= 0xE0:  # small integers
        return (tag if tag < 0x80 else tag - 0x100), at + 1
    if tag in _CONSTANTS:
        return _CONSTANTS[tag], at + 1
    if tag in _FIXED:
        code = _FIXED[tag]
        return struct.unpack_from(code, data, at + 1)[0], at + 1 + struct.calcsize(code)
    if tag < 0xC0:
        kind = "map" if tag < 0x90 else "list" if tag < 0xA0 else "str"
        return _collection(kind, tag & (0x1F if kind == "str" else 0x0F), data, at + 1)
    if tag not in _SIZES:
        raise ValueError(f"MessagePack type 0x{tag:02x} at byte {at} is not expected in a note")
    kind, code = _SIZES[tag]
    size = struct.unpack_from(code, data, at + 1)[0]
    return _collection(kind, size, data, at + 1 + struct.calcsize(code))


def _collection(kind: str, size: int, data: bytes, at: int) -> tuple[Any, int]:
    if kind == "str":
        return data[at : at + size].decode(), at + size
    items = []
    for _ in range(size * (2 if kind == "map" else 1)):
        item, at = _value(data, at)
        items.append(item)
    return (dict(zip(items[::2], items[1::2], strict=True)) if kind == "map" else items), at


def machine(elf: bytes) -> int:
    """EF_AMDGPU_MACH: which chip the code is for. Raises ValueError if it is not AMD code."""
    if elf[:4] != b"\x7fELF" or struct.unpack_from("<H", elf, 18)[0] != EM_AMDGPU:
        raise ValueError("not an AMD GPU code object")
    return int(struct.unpack_from("<I", elf, 48)[0] & 0xFF)


def kernel_record(elf: bytes) -> dict[str, Any]:
    """The record of the only kernel in a code object. Raises ValueError if there is none."""
    machine(elf)
    start, size, count = (
        struct.unpack_from("<Q", elf, 32)[0], *struct.unpack_from("<HH", elf, 54)
    )  # fmt: skip
    for header in range(start, start + size * count, size):
        kind, _, offset = struct.unpack_from("<IIQ", elf, header)
        if kind != PT_NOTE:
            continue
        name, length, note = struct.unpack_from("<III", elf, offset)
        if note == NT_AMDGPU_METADATA:
            at = offset + 12 + (name + 3) // 4 * 4
            kernels = unpack(elf[at : at + length])["amdhsa.kernels"]
            if len(kernels) != 1:
                raise ValueError(f"expected one kernel in the code object, found {len(kernels)}")
            return dict(kernels[0])
    raise ValueError("the code object has no metadata note")
