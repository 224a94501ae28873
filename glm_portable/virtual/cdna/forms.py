"""SDWA and DPP, output modifiers (CDNA3 ISA sections 12.17, 12.18 and 6.2).

SDWA picks a byte or word of a source and of the destination; DPP moves the first source's values
between lanes of a row of 16.
"""

import re
from collections.abc import Callable

import numpy as np

from glm_portable.virtual.cdna.faults import UnsupportedInstruction
from glm_portable.virtual.cdna.lanes import ALL, LANE, Booleans, Vector, Words, to_booleans, to_mask
from glm_portable.virtual.cdna.operation import Operation
from glm_portable.virtual.cdna.parser import Instruction, Modifiers
from glm_portable.virtual.cdna.state import Wave

Transform = Callable[[Wave, Words], Words]
_SELECT = re.compile(r"(BYTE|WORD)_([0-3])")
_PATTERNS = (
    "quad_perm",
    "row_shl",
    "row_shr",
    "row_ror",
    "row_bcast",
    "row_newbcast",
    "row_mirror",
    "row_half_mirror",
    "wave_shl",
    "wave_rol",
    "wave_shr",
    "wave_ror",
)
_OMOD = ("mul", "div")


class Forms:
    """No SDWA and no DPP: sources and destination as they are."""

    def __init__(self, modifiers: Modifiers) -> None:
        self.clamp = modifiers.flag("clamp")
        for name in _OMOD:
            if name in modifiers.values:  # ISA section 6.2.3
                raise UnsupportedInstruction(f"{name}: has no effect where denormals are kept")

    def source(self, index: int, extend: bool = False) -> Transform | None:
        """extend: the operand is sext(x)."""
        if extend:
            raise UnsupportedInstruction("sext() of an operand without SDWA")
        return None

    def destination(self, wave: Wave, register: int, values: Words) -> tuple[Words, int]:
        """What to write into `register`, and the lanes to write beside EXEC."""
        return values, ALL

    def undefined(self, wave: Wave, lanes: int) -> int:
        """Where the first source is undefined once moved, of where it is before."""
        return lanes

    def result(self, operation: Operation) -> Callable[[Vector], Vector]:
        """The output modifier clamp, of floats: to [0, 1], with -0 and NaN to 0."""
        if not self.clamp or operation.clamped is not None:
            return lambda values: values
        if operation.results not in ("f", "h"):
            raise UnsupportedInstruction("clamp of this instruction")

        def finish(values: Vector) -> Vector:
            return np.where(values > 0, np.minimum(values, 1), 0).astype(values.dtype)

        return finish


class Sdwa(Forms):
    def __init__(self, modifiers: Modifiers) -> None:
        super().__init__(modifiers)
        self._sources = [_selector(modifiers.take(f"src{i}_sel")) for i in range(2)]
        self._target = _selector(modifiers.take("dst_sel"))
        self._unused = modifiers.take("dst_unused") or "UNUSED_PAD"
        if self._unused not in ("UNUSED_PAD", "UNUSED_SEXT", "UNUSED_PRESERVE"):
            raise UnsupportedInstruction(f"dst_unused:{self._unused}")

    def source(self, index: int, extend: bool = False) -> Transform | None:
        selector = self._sources[index] if index < len(self._sources) else None
        if selector is None:
            return None
        shift, mask = np.uint32(selector[0]), np.uint32(selector[1])
        if not extend:
            return lambda wave, values: values >> shift & mask
        width = selector[1].bit_count()
        left, right = np.uint32(32 - selector[0] - width), 32 - width
        return lambda wave, values: ((values << left).view(np.int32) >> right).view(np.uint32)

    def destination(self, wave: Wave, register: int, values: Words) -> tuple[Words, int]:
        if self._target is None:
            return values, ALL
        shift, mask = self._target
        field = np.uint32(mask << shift)
        placed = values << np.uint32(shift) & field
        if self._unused == "UNUSED_SEXT":
            above = np.uint32(0x1_0000_0000 - (mask + 1 << shift))
            placed = np.where(values & np.uint32(mask + 1 >> 1), placed | above, placed)
        elif self._unused == "UNUSED_PRESERVE":
            placed = placed | wave.vectors[register] & ~field
        return placed, ALL


class Dpp(Forms):
    def __init__(self, modifiers: Modifiers) -> None:
        super().__init__(modifiers)
        self._from, self._inside = _pattern(modifiers)
        rows = modifiers.integer("row_mask", 0xF)
        banks = modifiers.integer("bank_mask", 0xF)
        enabled = (rows >> LANE // 16 & 1) & (banks >> LANE % 16 // 4 & 1)
        self._enabled = to_mask(enabled.astype(np.bool_))
        self._zero_outside = modifiers.flag("bound_ctrl")

    def source(self, index: int, extend: bool = False) -> Transform | None:
        if super().source(index, extend) is not None or index > 0:
            return None
        return lambda wave, values: np.where(self._valid(wave), values[self._from], 0).astype(
            np.uint32
        )

    def destination(self, wave: Wave, register: int, values: Words) -> tuple[Words, int]:
        if self._zero_outside:
            return values, self._enabled
        return values, self._enabled & to_mask(self._valid(wave))

    def undefined(self, wave: Wave, lanes: int) -> int:
        return to_mask(to_booleans(lanes)[self._from] & self._valid(wave))

    def _valid(self, wave: Wave) -> Booleans:
        valid: Booleans = self._inside & wave.lanes[self._from]
        return valid


def forms_of(instruction: Instruction) -> Forms:
    if instruction.encoding == "sdwa":
        return Sdwa(instruction.modifiers)
    if instruction.encoding == "dpp":
        return Dpp(instruction.modifiers)
    return Forms(instruction.modifiers)


def _selector(name: str | None) -> tuple[int, int] | None:
    """Shift and mask of a selector; None for the whole register."""
    if name in (None, "DWORD"):
        return None
    match = _SELECT.fullmatch(name or "")
    if match is None:
        raise UnsupportedInstruction(f"selector {name}")
    width = 8 if match[1] == "BYTE" else 16
    return width * int(match[2]), (1 << width) - 1


def _pattern(modifiers: Modifiers) -> tuple[Vector, Booleans]:
    """The lane each lane reads from, and whether it is inside the row."""
    name = next((p for p in _PATTERNS if p in modifiers.values), None)
    if name is None:
        raise UnsupportedInstruction("a DPP pattern that is not implemented")
    value = modifiers.take(name) or "0"
    everywhere = np.ones(len(LANE), np.bool_)
    row, column = LANE // 16 * 16, LANE % 16
    if name == "quad_perm":
        chosen = np.array([int(x) for x in value.strip("[]").split(",")])
        return LANE // 4 * 4 + chosen[LANE % 4], everywhere
    if name == "row_mirror":
        return row + 15 - column, everywhere
    if name == "row_half_mirror":
        return LANE // 8 * 8 + 7 - LANE % 8, everywhere
    amount = int(value, 0)
    if name == "row_newbcast":
        return row + amount, everywhere
    if name == "row_bcast":
        return _broadcast(amount)
    if name.startswith("wave_"):
        return _across_wave(name, amount)
    moved = column + (amount if name == "row_shl" else -amount)
    inside = everywhere if name == "row_ror" else (moved >= 0) & (moved < 16)
    return row + moved % 16, inside


def _across_wave(name: str, amount: int) -> tuple[Vector, Booleans]:
    """wave_shl:1 and wave_rol:1 read from the next lane, wave_shr:1 and wave_ror:1 from the last
    one; the rol and ror wrap around."""
    if amount != 1:
        raise UnsupportedInstruction(f"{name}:{amount}")
    moved = LANE + (1 if name in ("wave_shl", "wave_rol") else -1)
    inside = (moved >= 0) & (moved < len(LANE)) | (name in ("wave_rol", "wave_ror"))
    return moved % len(LANE), inside


def _broadcast(amount: int) -> tuple[Vector, Booleans]:
    """row_bcast:15, a row's last lane to the next row; row_bcast:31, lane 31 to rows 2 and 3."""
    if amount == 15:
        return np.maximum(LANE // 16 * 16 - 1, 0), LANE >= 16
    if amount == 31:
        return np.full(len(LANE), 31), LANE >= 32
    raise UnsupportedInstruction(f"row_bcast:{amount}")
