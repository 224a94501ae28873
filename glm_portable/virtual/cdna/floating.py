"""Floating-point vector operations and conversions (CDNA3 ISA sections 12.7 to 12.11).

float32 results are rounded to nearest even, once, and denormals are kept, as Triton's kernels ask
for. Reciprocals, roots, exponentials, logarithms, sines and cosines are deliberately approximate:
the hardware promises 1 ULP, and these are numpy's, nearer to the exact value than that. Like the
hardware's in float32, they take denormals for zero and give none. The payloads of NaN that
arithmetic gives are numpy's.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from glm_portable.virtual.cdna.conversions import (
    from_fp16,
    to_bf16,
    to_fp16,
    to_fp16_saturated,
    to_fp16_toward_zero,
)
from glm_portable.virtual.cdna.lanes import Vector, Words
from glm_portable.virtual.cdna.operation import Operation

_F32, _F64 = np.float32, np.float64
_SMALLEST_NORMAL = float(np.finfo(np.float32).tiny)
_BELOW_ONE = np.array(0x3F7FFFFF, np.uint32).view(np.float32)
_QUIET = {4: np.uint32(1 << 22), 2: np.uint16(1 << 9)}
_BITS: dict[int, type[Any]] = {4: np.uint32, 2: np.uint16}


def fma(a: Vector, b: Vector, c: Vector) -> Vector:
    """a * b + c rounded once."""
    return exact_fma(a, b, c).astype(_F32)


def exact_fma(a: Vector, b: Vector, c: Vector) -> Vector:
    """a * b + c in float64, rounded so that rounding once more to float32 or float16 gives what
    rounding the exact sum does: to odd (Boldo and Melquiond, Emulation of FMA and correctly rounded
    sums, 2008). The product of two float32 is exact."""
    product, addend = a.astype(_F64) * b, c.astype(_F64)
    total = product + addend
    part = total - product
    rest = (product - (total - part)) + (addend - part)  # what the addition rounded off, exactly
    bits = total.view(np.int64)
    inexact = np.isfinite(total) & (rest != 0) & (bits & 1 == 0)
    away = (rest > 0) == (total > 0)  # the exact sum is larger in magnitude
    return np.where(inexact, bits + np.where(away, 1, -1), bits).view(_F64)


def quieted(x: Vector) -> Vector:
    size = x.dtype.itemsize
    quiet: Vector = (x.view(_BITS[size]) | _QUIET[size]).view(x.dtype)
    return quiet


def _is_signalling(x: Vector) -> Vector:
    signalling: Vector = np.isnan(x) & (
        x.view(_BITS[x.dtype.itemsize]) & _QUIET[x.dtype.itemsize] == 0
    )
    return signalling


def minimum_number(a: Vector, b: Vector) -> Vector:
    """V_MIN_F32, V_MIN_F16: the smaller; -0 is below 0; of a quiet NaN and a number the number; a
    signalling NaN, quieted (IEEE mode)."""
    return _chosen(a, b, np.where(a == b, np.signbit(a), a < b))


def maximum_number(a: Vector, b: Vector) -> Vector:
    """V_MAX_F32, V_MAX_F16: as minimum_number."""
    return _chosen(a, b, np.where(a == b, ~np.signbit(a), a > b))


def _chosen(a: Vector, b: Vector, first: Vector) -> Vector:
    number = np.where(np.isnan(a), b, np.where(np.isnan(b) | first, a, b))
    number = np.where(_is_signalling(b), quieted(b), number)
    chosen: Vector = np.where(_is_signalling(a), quieted(a), number)
    return chosen


def minimum3_number(a: Vector, b: Vector, c: Vector) -> Vector:
    return minimum_number(minimum_number(a, b), c)


def maximum3_number(a: Vector, b: Vector, c: Vector) -> Vector:
    return maximum_number(maximum_number(a, b), c)


def median(a: Vector, b: Vector, c: Vector) -> Vector:
    """V_MED3_F32: the middle one; as V_MIN3_F32 where one is NaN."""
    top = maximum3_number(a, b, c)
    middle = np.where(top == b, maximum_number(a, c), maximum_number(a, b))
    middle = np.where(top == a, maximum_number(b, c), middle)
    any_nan = np.isnan(a) | np.isnan(b) | np.isnan(c)
    return np.where(any_nan, minimum3_number(a, b, c), middle)


def minimum(a: Vector, b: Vector) -> Vector:
    """IEEE 754-2019 minimum: NaN if either is."""
    nan = np.where(np.isnan(a), quieted(a), quieted(b))
    return np.where(np.isnan(a) | np.isnan(b), nan, minimum_number(a, b))


def maximum(a: Vector, b: Vector) -> Vector:
    nan = np.where(np.isnan(a), quieted(a), quieted(b))
    return np.where(np.isnan(a) | np.isnan(b), nan, maximum_number(a, b))


def _flushed(function: Callable[[Vector], Vector]) -> Operation:
    """Of float64, with float32's denormals taken for zero as source and as result."""

    def run(a: Vector) -> Vector:
        return _flush(function(_flush(a).astype(_F64)).astype(_F32))

    return Operation(run, "f>f")


def _flush(x: Vector) -> Vector:
    return np.where(_is_denormal(x), np.copysign(_F32(0), x), x)


def _sine(turns: Vector) -> Vector:
    """Of 2 pi times the source; 0 beyond 256 turns (V_SIN_F32's valid range)."""
    return np.where(_beyond(turns), 0.0, np.sin(2 * np.pi * turns))


def _cosine(turns: Vector) -> Vector:
    return np.where(_beyond(turns), 1.0, np.cos(2 * np.pi * turns))


def _beyond(turns: Vector) -> Vector:
    beyond: Vector = np.isfinite(turns) & (np.abs(turns) > 256)
    return beyond


def fraction(a: Vector) -> Vector:
    """V_FRACT_F32: below 1 also where a - floor(a) rounds to 1, as LLVM has it."""
    return np.where(np.isnan(a), a, np.minimum(a - np.floor(a), _BELOW_ONE))


def _mantissa(a: Vector) -> Vector:
    return np.where(np.isfinite(a), np.frexp(a)[0], a)


def _frexp_exponent(a: Vector) -> Vector:
    return np.where(np.isfinite(a), np.frexp(a)[1], 0).astype(np.int32)


def _is_denormal(x: Vector) -> Vector:
    denormal: Vector = (x != 0) & (np.abs(x) < _SMALLEST_NORMAL)
    return denormal


def _exponent(x: Vector) -> Vector:
    """The biased exponent field of float32."""
    return (x.view(np.uint32) >> np.uint32(23) & np.uint32(0xFF)).astype(np.int32)


def div_scale(value: Vector, denominator: Vector, numerator: Vector) -> tuple[Vector, Vector]:
    """V_DIV_SCALE_F32: value (one of the other two) scaled so that the division's steps neither
    overflow nor lose bits, and a mask of the lanes whose quotient is to be scaled back.

    Where both the reciprocal and the quotient are denormal, the ISA document scales the denominator
    up, which overflows; here it is scaled down, as LLVM's division must have it to be exact.
    """
    wide_d, wide_n = denominator.astype(_F64), numerator.astype(_F64)
    is_denominator = value == denominator
    reciprocal_small = _is_denormal(1 / wide_d)
    quotient_small = _is_denormal(wide_n / wide_d)
    cases = [
        (wide_d == 0) | (wide_n == 0),
        _exponent(numerator) - _exponent(denominator) >= 96,
        _is_denormal(denominator),
        reciprocal_small & quotient_small,
        reciprocal_small,
        quotient_small,
        _exponent(numerator) <= 23,
    ]
    up_if_denominator = np.where(is_denominator, 64, 0)
    down_if_denominator = -up_if_denominator
    up_if_numerator = np.where(value == numerator, 64, 0)
    powers: list[Any] = [0, up_if_denominator, 64, down_if_denominator, -64, up_if_numerator, 64]
    scaled = np.ldexp(value, np.select(cases, powers, 0)).astype(_F32)
    rescale = np.select(cases, [False, True, False, True, False, True, False], False)
    return np.where(cases[0], _F32(np.nan), scaled), rescale


def div_fmas(a: Vector, b: Vector, c: Vector, rescale: Vector) -> Vector:
    """V_DIV_FMAS_F32: fma(a, b, c), scaled back by 2^64 (a large quotient) or 2^-64 by VCC; rounded
    once, after that."""
    power = np.where(_exponent(c) > 127, 64, -64)
    result = exact_fma(a, b, c)
    return np.where(rescale, np.ldexp(result, power), result).astype(_F32)


def div_fixup(quotient: Vector, denominator: Vector, numerator: Vector) -> Vector:
    """V_DIV_FIXUP_F32: the quotient with its sign, and IEEE's results for special operands.

    A quotient of numbers that is NaN overflowed in the steps before, and becomes infinity.
    """
    exact = numerator.astype(_F64) / denominator
    special = ~np.isfinite(denominator) | ~np.isfinite(numerator) | (exact == 0)
    special |= denominator == 0
    tiny = _exponent(numerator) - _exponent(denominator) < -150
    magnitude = np.where(np.isnan(quotient), np.inf, np.abs(quotient))
    magnitude = np.where(tiny, 0, magnitude).astype(_F32)
    sign = np.signbit(numerator) ^ np.signbit(denominator)
    return np.where(special, exact.astype(_F32), np.where(sign, -magnitude, magnitude))


def to_integer(low: int, high: int) -> Callable[[Vector], Vector]:
    """Truncated and clamped; NaN gives 0."""

    def convert(x: Vector) -> Vector:
        clipped: Vector = np.clip(np.nan_to_num(np.trunc(x.astype(_F64)), nan=0.0), low, high)
        return clipped.astype(np.int64)

    return convert


_to_u32, _to_i32 = to_integer(0, 2**32 - 1), to_integer(-(2**31), 2**31 - 1)


def _pack(convert: Callable[[Vector], Words]) -> Callable[[Vector, Vector], Words]:
    return lambda a, b: convert(a) | convert(b) << np.uint32(16)


def _half(codes: Words) -> Vector:
    return codes.astype(np.uint16).view(np.float16)


def _byte(index: int) -> Callable[[Words], Vector]:
    return lambda a: (a >> np.uint32(8 * index) & np.uint32(0xFF)).astype(_F32)


OPERATIONS: dict[str, Operation] = {
    "v_add_f32": Operation(lambda a, b: a + b, "ff>f"),
    "v_sub_f32": Operation(lambda a, b: a - b, "ff>f"),
    "v_subrev_f32": Operation(lambda a, b: b - a, "ff>f"),
    "v_mul_f32": Operation(lambda a, b: a * b, "ff>f"),
    "v_min_f32": Operation(minimum_number, "ff>f"),
    "v_max_f32": Operation(maximum_number, "ff>f"),
    "v_min3_f32": Operation(minimum3_number, "fff>f"),
    "v_max3_f32": Operation(maximum3_number, "fff>f"),
    "v_minimum3_f32": Operation(lambda a, b, c: minimum(minimum(a, b), c), "fff>f"),
    "v_maximum3_f32": Operation(lambda a, b, c: maximum(maximum(a, b), c), "fff>f"),
    "v_med3_f32": Operation(median, "fff>f"),
    "v_fma_f32": Operation(fma, "fff>f"),
    "v_fmac_f32": Operation(fma, "fff>f", reads_destination=True),
    "v_fmamk_f32": Operation(fma, "fff>f"),
    "v_fmaak_f32": Operation(fma, "fff>f"),
    "v_rcp_f32": _flushed(lambda a: 1 / a),
    "v_rcp_iflag_f32": _flushed(lambda a: 1 / a),
    "v_rsq_f32": _flushed(lambda a: 1 / np.sqrt(a)),
    "v_sqrt_f32": _flushed(np.sqrt),
    "v_exp_f32": _flushed(np.exp2),
    "v_log_f32": _flushed(np.log2),
    "v_sin_f32": _flushed(_sine),
    "v_cos_f32": _flushed(_cosine),
    "v_rndne_f32": Operation(np.rint, "f>f"),
    "v_floor_f32": Operation(np.floor, "f>f"),
    "v_ceil_f32": Operation(np.ceil, "f>f"),
    "v_trunc_f32": Operation(np.trunc, "f>f"),
    "v_fract_f32": Operation(fraction, "f>f"),
    "v_ldexp_f32": Operation(lambda a, n: np.ldexp(a, n), "fi>f"),
    "v_frexp_mant_f32": Operation(_mantissa, "f>f"),
    "v_frexp_exp_i32_f32": Operation(_frexp_exponent, "f>i"),
    "v_div_scale_f32": Operation(div_scale, "fff>fM"),
    "v_div_fmas_f32": Operation(div_fmas, "fffm>f"),
    "v_div_fixup_f32": Operation(div_fixup, "fff>f"),
    "v_cvt_f32_u32": Operation(lambda a: a.astype(_F32), "u>f"),
    "v_cvt_f32_i32": Operation(lambda a: a.astype(_F32), "i>f"),
    "v_cvt_u32_f32": Operation(lambda a: _to_u32(a).astype(np.uint32), "f>u"),
    "v_cvt_i32_f32": Operation(lambda a: _to_i32(a).astype(np.int32), "f>i"),
    "v_cvt_flr_i32_f32": Operation(lambda a: _to_i32(np.floor(a)).astype(np.int32), "f>i"),
    "v_cvt_rpi_i32_f32": Operation(
        lambda a: _to_i32(np.floor(a + _F32(0.5))).astype(np.int32), "f>i"
    ),
    "v_cvt_f32_ubyte0": Operation(_byte(0), "u>f"),
    "v_cvt_f32_ubyte1": Operation(_byte(1), "u>f"),
    "v_cvt_f32_ubyte2": Operation(_byte(2), "u>f"),
    "v_cvt_f32_ubyte3": Operation(_byte(3), "u>f"),
    "v_cvt_f32_f16": Operation(lambda a: from_fp16(a.view(np.uint16)), "h>f"),
    "v_cvt_f16_f32": Operation(
        lambda a: _half(to_fp16(a)), "f>h", saturated=lambda a: _half(to_fp16_saturated(a))
    ),
    "v_cvt_pk_f16_f32": Operation(_pack(to_fp16), "ff>u", saturated=_pack(to_fp16_saturated)),
    "v_cvt_pkrtz_f16_f32": Operation(_pack(to_fp16_toward_zero), "ff>u"),
    "v_cvt_pk_bf16_f32": Operation(_pack(to_bf16), "ff>u"),
}
