"""Single instructions on one wave, for tests that state what each lane must become."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import product

import numpy as np
import pytest

from glm_portable.virtual.cdna.chips import chip_named
from glm_portable.virtual.cdna.decode import decode_instruction
from glm_portable.virtual.cdna.decoded import Context
from glm_portable.virtual.cdna.faults import UnsupportedInstruction
from glm_portable.virtual.cdna.lanes import ALL
from glm_portable.virtual.cdna.lds import LocalMemory
from glm_portable.virtual.cdna.memory import GlobalMemory
from glm_portable.virtual.cdna.operands import EXEC, SGPR, VCC
from glm_portable.virtual.cdna.parser import parse_instruction
from glm_portable.virtual.cdna.state import Wave, Workgroup

M32 = 0xFFFFFFFF


def new_wave(arch: str = "gfx942") -> Wave:
    return Wave(0, Workgroup((0, 0, 0), GlobalMemory(), LocalMemory(0)), chip_named(arch))


def step(wave: Wave, text: str) -> None:
    """Execute one instruction."""
    context = Context(wave.chip, {"label": 77})
    with np.errstate(all="ignore"):
        decode_instruction(parse_instruction(text), context).execute(wave)


def set_vector(wave: Wave, register: int, values: Sequence[int] | int) -> None:
    """All 64 lanes, defined; register: 256 and up for accumulators."""
    words = [values] * 64 if isinstance(values, int) else [*values, *[0] * (64 - len(values))]
    wave.vectors[register] = np.array(words, np.uint32)
    wave.undefined[register] = 0


def set_scalar(wave: Wave, register: int, value: int, count: int = 1) -> None:
    wave.write_scalars(SGPR + register, count, value)


def set_exec(wave: Wave, mask: int) -> None:
    wave.write_scalars(EXEC, 2, mask)


def set_vcc(wave: Wave, mask: int) -> None:
    wave.write_scalars(VCC, 2, mask)


def vector(wave: Wave, register: int) -> list[int]:
    return [int(x) for x in wave.vectors[register]]


def pair(wave: Wave, register: int) -> list[int]:
    low, high = vector(wave, register), vector(wave, register + 1)
    return [a | b << 32 for a, b in zip(low, high, strict=True)]


def scalar(wave: Wave, register: int, count: int = 1) -> int:
    return wave.read_scalars(SGPR + register, count)


def batches(columns: Sequence[Sequence[int]]) -> Iterator[list[tuple[int, ...]]]:
    """Every combination of the columns' values, 64 at a time, the last filled up."""
    rows = list(product(*columns))
    for start in range(0, len(rows), 64):
        rest = rows[start : start + 64]
        yield rest + [rest[-1]] * (64 - len(rest))


def check_lanes(
    text: str,
    oracle: Callable[..., int | None],
    columns: Sequence[Sequence[int]],
    arch: str = "gfx942",
    same: Callable[[int, int | None], bool] | None = None,
    prepare: Callable[[Wave], None] | None = None,
) -> None:
    """The instruction with v1, v2, ... as sources and v0 as result, lane by lane.

    oracle: of the sources' words, the result's. same: whether a result is the expected one.
    """
    wave = new_wave(arch)
    if prepare is not None:
        prepare(wave)
    for rows in batches(columns):
        for i in range(len(columns)):
            set_vector(wave, 1 + i, [row[i] for row in rows])
        step(wave, text)
        for row, actual in zip(rows, vector(wave, 0), strict=True):
            expected = oracle(*row)
            equal = actual == expected if same is None else same(actual, expected)
            shown = "any NaN" if expected is None else f"{expected:#x}"
            assert equal, f"{text}: of {[hex(x) for x in row]} came {actual:#x}, not {shown}"
        assert wave.undefined[0] == 0


def check_mask(
    text: str, oracle: Callable[..., bool], columns: Sequence[Sequence[int]], arch: str = "gfx942"
) -> None:
    """A comparison of v1 and v2 (64 bits: v[12:13] and v[14:15]) into vcc."""
    wave = new_wave(arch)
    for rows in batches(columns):
        for i in range(len(columns)):
            set_vector(wave, 1 + i, [row[i] & M32 for row in rows])
            for half in range(2):
                set_vector(wave, 2 + 2 * i + half + 10, [row[i] >> 32 * half & M32 for row in rows])
        step(wave, text)
        for lane, row in enumerate(rows):
            actual = bool(wave.vcc >> lane & 1)
            assert actual == oracle(*row), f"{text}: {[hex(x) for x in row]} came {actual}"


def refused(text: str, reason: str, arch: str = "gfx942") -> None:
    """The decoder refuses the instruction with this reason."""
    with pytest.raises(UnsupportedInstruction, match=reason):
        context = Context(chip_named(arch), {})
        decode_instruction(parse_instruction(text), context)


def signed(value: int, width: int) -> int:
    value &= (1 << width) - 1
    return value - (1 << width) if value >> (width - 1) else value


def lanes(mask: int) -> list[int]:
    return [i for i in range(64) if mask >> i & 1]


def poison(wave: Wave, register: int, mask: int = ALL) -> None:
    wave.undefined[register] = mask


def filled(wave: Wave, values: Mapping[int, Sequence[int] | int]) -> Wave:
    for register, words in values.items():
        set_vector(wave, register, words)
    return wave
