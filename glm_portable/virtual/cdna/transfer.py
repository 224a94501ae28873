"""How loads and stores move bytes between memory and registers, by the suffix of the mnemonic."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from glm_portable.virtual.cdna.lanes import LANES, Booleans, Vector, Words
from glm_portable.virtual.cdna.memory import Bytes
from glm_portable.virtual.cdna.state import Wave

Half = Literal["whole", "low", "high"]


@dataclass(frozen=True)
class Transfer:
    """width: bytes a lane. signed: extend the sign of less than 4 bytes. half: the part of the
    register that is loaded or stored, the other one being kept (d16 and d16_hi)."""

    width: int
    signed: bool = False
    half: Half = "whole"

    @property
    def registers(self) -> int:
        return max(self.width // 4, 1)

    def to_registers(
        self, wave: Wave, register: int, values: Bytes, lanes: Booleans, mask: int
    ) -> None:
        """values: shape (64, width). lanes and mask: EXEC at the time of issue."""
        for i, words in enumerate(self._extended(values)):
            target = wave.vectors[register + i]
            np.copyto(target, self._merged(target, words), where=lanes)
            wave.undefined[register + i] &= ~mask

    def from_registers(self, wave: Wave, register: int, lanes: Booleans) -> Bytes:
        """The bytes to store, shape (lanes chosen, width)."""
        words = wave.vectors[register : register + self.registers, lanes].T
        if self.half == "high":
            words = words >> np.uint32(16)
        raw = np.ascontiguousarray(words).view(np.uint8)
        return raw[:, : self.width]

    def _extended(self, values: Bytes) -> Vector:
        """Shape (registers, 64)."""
        if self.width >= 4:
            words: Vector = np.ascontiguousarray(values).view(np.uint32).T
            return words
        padded = np.zeros((LANES, 4), np.uint8)
        padded[:, : self.width] = values
        if self.signed:
            padded[:, self.width :] = np.where(values[:, -1:] & 0x80, 0xFF, 0)
        return padded.view(np.uint32).T

    def _merged(self, old: Words, words: Words) -> Words:
        if self.half == "high":
            return old & np.uint32(0xFFFF) | words << np.uint32(16)
        if self.half == "low":
            return old & np.uint32(0xFFFF0000) | words & np.uint32(0xFFFF)
        return words


_NAMED = {
    "dword": Transfer(4),
    "dwordx2": Transfer(8),
    "dwordx3": Transfer(12),
    "dwordx4": Transfer(16),
    "ubyte": Transfer(1),
    "sbyte": Transfer(1, signed=True),
    "ushort": Transfer(2),
    "sshort": Transfer(2, signed=True),
    "byte": Transfer(1),
    "short": Transfer(2),
    "short_d16": Transfer(2, half="low"),
    "short_d16_hi": Transfer(2, half="high"),
    "ubyte_d16": Transfer(1, half="low"),
    "ubyte_d16_hi": Transfer(1, half="high"),
    "sbyte_d16": Transfer(1, signed=True, half="low"),
    "sbyte_d16_hi": Transfer(1, signed=True, half="high"),
    "byte_d16_hi": Transfer(1, half="high"),
}


def transfer_named(suffix: str) -> Transfer | None:
    return _NAMED.get(suffix)
