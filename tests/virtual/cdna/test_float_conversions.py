"""Conversions between float32, float16 and integers, against exact fractions."""

import math
import struct
from collections.abc import Callable
from fractions import Fraction

import pytest

from tests.virtual.cdna.ieee import F16, F16_EDGES, F32, F32_EDGES, Format
from tests.virtual.cdna.single import (
    M32,
    check_lanes,
    set_vector,
    signed,
    step,
)


def bits_of(x: float) -> int:
    return int.from_bytes(struct.pack("<f", x), "little")


TIES = [0x3F000000, 0x3FC00000, 0x40200000, 0xBF000000, 0xBFC00000, 0x4B000001, 0x4A800001]
TIES16 = [0x3800, 0x3E00, 0x4100, 0xB800, 0xBE00, 0x63FF]


# Conversions


def to_integer(
    low: int, high: int, prepare: Callable[[Fraction], Fraction | int]
) -> Callable[[int], int]:
    def run(a: int) -> int:
        if F32.is_nan(a):
            return 0
        if F32.is_infinite(a):
            return (low if F32.sign(a) else high) & M32
        return min(max(math.trunc(prepare(F32.value(a))), low), high) & M32

    return run


def nudged(x: Fraction) -> Fraction:
    return F32.value(F32.round(x + Fraction(1, 2)))


INTEGERS = [
    *F32_EDGES,
    *TIES,
    0x4F000000,
    0xCF000000,
    0x4EFFFFFF,
    0x4F7FFFFF,
    0x4F800000,
    0xCF000001,
]


@pytest.mark.parametrize(
    ("name", "oracle"),
    [
        ("v_cvt_u32_f32", to_integer(0, M32, lambda x: x)),
        ("v_cvt_i32_f32", to_integer(-(1 << 31), (1 << 31) - 1, lambda x: x)),
        ("v_cvt_flr_i32_f32", to_integer(-(1 << 31), (1 << 31) - 1, math.floor)),
        (
            "v_cvt_rpi_i32_f32",
            to_integer(-(1 << 31), (1 << 31) - 1, lambda x: math.floor(nudged(x))),
        ),
        ("v_cvt_f32_u32", lambda a: F32.round(Fraction(a))),
        ("v_cvt_f32_i32", lambda a: F32.round(Fraction(signed(a, 32)))),
        ("v_cvt_f32_ubyte0", lambda a: F32.round(Fraction(a & 0xFF))),
        ("v_cvt_f32_ubyte1", lambda a: F32.round(Fraction(a >> 8 & 0xFF))),
        ("v_cvt_f32_ubyte2", lambda a: F32.round(Fraction(a >> 16 & 0xFF))),
        ("v_cvt_f32_ubyte3", lambda a: F32.round(Fraction(a >> 24))),
    ],
)
def test_integer_conversions(name: str, oracle: Callable[[int], int]) -> None:
    values = INTEGERS + [
        0x01000001,
        0x01000003,
        0x7FFFFFBF,
        0x7FFFFFC0,
        0xFFFFFF7F,
        0xFFFFFF80,
        M32,
    ]
    check_lanes(f"{name} v0, v1", oracle, [values])


def test_half_integer_conversions() -> None:
    def to_half(low: int, high: int) -> Callable[[int], int]:
        def run(a: int) -> int:
            a &= 0xFFFF
            if F16.is_nan(a):
                return 0xBEEF0000
            if F16.is_infinite(a):
                return 0xBEEF0000 | (low if F16.sign(a) else high) & 0xFFFF
            return 0xBEEF0000 | min(max(math.trunc(F16.value(a)), low), high) & 0xFFFF

        return run

    def upper(wave: object) -> None:
        set_vector(wave, 0, 0xBEEF1234)  # type: ignore[arg-type]  # the checker's wave

    check_lanes("v_cvt_u16_f16 v0, v1", to_half(0, 65535), [F16_EDGES + TIES16], prepare=upper)
    check_lanes("v_cvt_i16_f16 v0, v1", to_half(-32768, 32767), [F16_EDGES + TIES16], prepare=upper)
    words = [0, 1, 2047, 2049, 2051, 0x7FFF, 0x8000, 0xFFFF, 65520, 0x12340003]
    check_lanes("v_cvt_f16_u16 v0, v1", lambda a: F16.round(Fraction(a & 0xFFFF)), [words])
    check_lanes("v_cvt_f16_i16 v0, v1", lambda a: F16.round(Fraction(signed(a, 16))), [words])


def convert(a: int, source: Format, target: Format) -> int | None:
    if source.is_nan(a):
        return None
    if source.is_infinite(a):
        return target.signed(source.sign(a), target.infinity)
    return target.round(source.value(a), bool(source.sign(a)))


HALF_TIES = [bits_of((1 + (2 * i + 1) * 2**-11) * 2.0**e) for i in range(3) for e in (-14, 0, 15)]
HALF_EDGES = [*F32_EDGES, *HALF_TIES, 0x33000000, 0x33000001, 0x477FEFFF, 0x477FF000, 0x38800000]


def test_half_conversions() -> None:
    check_lanes("v_cvt_f16_f32 v0, v1", lambda a: convert(a, F32, F16), [HALF_EDGES], same=F16.same)
    every = list(range(0x10000))
    check_lanes("v_cvt_f32_f16 v0, v1", lambda a: convert(a, F16, F32), [every[::7]], same=F32.same)

    def toward_zero(a: int) -> int | None:
        nearest = convert(a, F32, F16)
        if nearest is None or F32.is_infinite(a):
            return nearest
        overflow = F16.is_infinite(nearest)
        larger = overflow or abs(F16.value(nearest)) > abs(F32.value(a))
        return nearest - larger

    def packed(one: Callable[[int], int | None]) -> Callable[[int, int], int]:
        return lambda a, b: (one(a) or 0) | (one(b) or 0) << 16

    numbers = [x for x in HALF_EDGES if not F32.is_nan(x)]
    check_lanes("v_cvt_pkrtz_f16_f32 v0, v1, v2", packed(toward_zero), [numbers, numbers[:9]])
    nearest = packed(lambda a: convert(a, F32, F16))
    check_lanes("v_cvt_pk_f16_f32 v0, v1, v2", nearest, [numbers, numbers[-9:]], "gfx950")


def test_half_overflow_mode() -> None:
    """MODE.FP16_OVFL: a finite result that overflows gives the largest number."""

    def limited(a: int) -> int | None:
        result = convert(a, F32, F16)
        if result is not None and F16.is_infinite(result) and not F32.is_infinite(a):
            return result - 1
        return result

    def prepare(wave: object) -> None:
        step(wave, "s_setreg_imm32_b32 hwreg(HW_REG_MODE, 23, 1), 1")  # type: ignore[arg-type]

    check_lanes("v_cvt_f16_f32 v0, v1", limited, [HALF_EDGES], same=F16.same, prepare=prepare)

    def sum_limited(a: int, b: int) -> int | None:
        result = F16.add(a, b)
        infinite = F16.is_infinite(a) or F16.is_infinite(b)
        overflow = result is not None and F16.is_infinite(result) and not infinite
        return result if result is None or not overflow else result - 1

    check_lanes(
        "v_add_f16 v0, v1, v2", sum_limited, [F16_EDGES] * 2, same=F16.same, prepare=prepare
    )
