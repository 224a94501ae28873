"""Floating-point vector operations and conversions (CDNA3 ISA sections 12.7 to 12.11).

float32 results are rounded to nearest even and denormals are kept, as Triton's kernels ask for;
reciprocals, roots, exponentials and logarithms are numpy's and not the hardware's approximations.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from glm_portable.virtual.cdna.conversions import from_fp16, to_bf16, to_fp16
from glm_portable.virtual.cdna.lanes import Vector, Words
from glm_portable.virtual.cdna.operation import Operation

_F32, _F64 = np.float32, np.float64
_SMALLEST_NORMAL = float(np.finfo(np.float32).tiny)


def fma(a: Vector, b: Vector, c: Vector) -> Vector:
    """a * b + c rounded once, but for float64's own rounding of the sum (a double rounding)."""
    return (a.astype(_F64) * b + c).astype(_F32)


def median(a: Vector, b: Vector, c: Vector) -> Vector:
    """V_MED3_F32: the middle one; the smallest where one is NaN."""
    middle = np.maximum(np.minimum(a, b), np.minimum(np.maximum(a, b), c))
    return np.where(np.isnan(middle), np.fmin(np.fmin(a, b), c), middle)


def _is_denormal(x: Vector) -> Vector:
    denormal: Vector = (x != 0) & (np.abs(x) < _SMALLEST_NORMAL)
    return denormal


def _exponent(x: Vector) -> Vector:
    """The biased exponent field of float32."""
    return (x.view(np.uint32) >> np.uint32(23) & np.uint32(0xFF)).astype(np.int32)


def div_scale(value: Vector, denominator: Vector, numerator: Vector) -> tuple[Vector, Vector]:
    """V_DIV_SCALE_F32: value (one of the other two) scaled so that the division's steps neither
    overflow nor lose bits, and a mask of the lanes whose quotient is to be scaled back.

    Where reciprocal and quotient are both subnormal, the denominator is above 2^126 and scaled
    down; the ISA's text says up, which would make it infinite.
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
    up_if_numerator = np.where(value == numerator, 64, 0)
    down = -up_if_denominator
    powers: list[Any] = [0, up_if_denominator, 64, down, -64, up_if_numerator, 64]
    scaled = np.ldexp(value, np.select(cases, powers, 0)).astype(_F32)
    rescale = np.select(cases, [False, True, False, True, False, True, False], False)
    return np.where(cases[0], _F32(np.nan), scaled), rescale


def div_fmas(a: Vector, b: Vector, c: Vector, rescale: Vector) -> Vector:
    """V_DIV_FMAS_F32: fma(a, b, c), scaled back by 2^64 (a large quotient) or 2^-64 by VCC."""
    power = np.where(_exponent(c) > 127, 64, -64)
    result = a.astype(_F64) * b + c
    return np.where(rescale, np.ldexp(result, power), result).astype(_F32)


def div_fixup(quotient: Vector, denominator: Vector, numerator: Vector) -> Vector:
    """V_DIV_FIXUP_F32: the quotient with its sign, and IEEE's results for special operands."""
    exact = numerator.astype(_F64) / denominator
    special = ~np.isfinite(denominator) | ~np.isfinite(numerator) | (exact == 0)
    special |= denominator == 0
    tiny = _exponent(numerator) - _exponent(denominator) < -150
    magnitude = np.where(tiny & ~special, 0, np.abs(quotient)).astype(_F32)
    sign = np.signbit(numerator) ^ np.signbit(denominator)
    return np.where(special, exact.astype(_F32), np.where(sign, -magnitude, magnitude))


def _to_integer(low: int, high: int) -> Callable[[Vector], Vector]:
    """Truncated and clamped; NaN gives 0."""

    def convert(x: Vector) -> Vector:
        clipped: Vector = np.clip(np.nan_to_num(np.trunc(x.astype(_F64)), nan=0.0), low, high)
        return clipped.astype(np.int64)

    return convert


_to_u32, _to_i32 = _to_integer(0, 2**32 - 1), _to_integer(-(2**31), 2**31 - 1)


def _pack_bf16(a: Vector, b: Vector) -> Words:
    return to_bf16(a) | to_bf16(b) << np.uint32(16)


def _pack_fp16(a: Vector, b: Vector) -> Words:
    return to_fp16(a) | to_fp16(b) << np.uint32(16)


def _byte(index: int) -> Callable[[Words], Vector]:
    return lambda a: (a >> np.uint32(8 * index) & np.uint32(0xFF)).astype(_F32)


OPERATIONS: dict[str, Operation] = {
    "v_add_f32": Operation(lambda a, b: a + b, "ff>f"),
    "v_sub_f32": Operation(lambda a, b: a - b, "ff>f"),
    "v_subrev_f32": Operation(lambda a, b: b - a, "ff>f"),
    "v_mul_f32": Operation(lambda a, b: a * b, "ff>f"),
    "v_min_f32": Operation(np.fmin, "ff>f"),
    "v_max_f32": Operation(np.fmax, "ff>f"),
    "v_min3_f32": Operation(lambda a, b, c: np.fmin(np.fmin(a, b), c), "fff>f"),
    "v_max3_f32": Operation(lambda a, b, c: np.fmax(np.fmax(a, b), c), "fff>f"),
    "v_minimum3_f32": Operation(lambda a, b, c: np.minimum(np.minimum(a, b), c), "fff>f"),
    "v_maximum3_f32": Operation(lambda a, b, c: np.maximum(np.maximum(a, b), c), "fff>f"),
    "v_med3_f32": Operation(median, "fff>f"),
    "v_fma_f32": Operation(fma, "fff>f"),
    "v_fmac_f32": Operation(fma, "fff>f", reads_destination=True),
    "v_fmamk_f32": Operation(fma, "fff>f"),
    "v_fmaak_f32": Operation(fma, "fff>f"),
    "v_rcp_f32": Operation(lambda a: _F32(1) / a, "f>f"),
    "v_rcp_iflag_f32": Operation(lambda a: _F32(1) / a, "f>f"),
    "v_rsq_f32": Operation(lambda a: (1 / np.sqrt(a.astype(_F64))).astype(_F32), "f>f"),
    "v_sqrt_f32": Operation(np.sqrt, "f>f"),
    "v_exp_f32": Operation(np.exp2, "f>f"),
    "v_log_f32": Operation(np.log2, "f>f"),
    "v_sin_f32": Operation(lambda a: np.sin(2 * np.pi * a.astype(_F64)).astype(_F32), "f>f"),
    "v_cos_f32": Operation(lambda a: np.cos(2 * np.pi * a.astype(_F64)).astype(_F32), "f>f"),
    "v_rndne_f32": Operation(np.rint, "f>f"),
    "v_floor_f32": Operation(np.floor, "f>f"),
    "v_ceil_f32": Operation(np.ceil, "f>f"),
    "v_trunc_f32": Operation(np.trunc, "f>f"),
    "v_fract_f32": Operation(lambda a: a - np.floor(a), "f>f"),
    "v_ldexp_f32": Operation(lambda a, n: np.ldexp(a, n), "fi>f"),
    "v_frexp_mant_f32": Operation(lambda a: np.frexp(a)[0], "f>f"),
    "v_frexp_exp_i32_f32": Operation(lambda a: np.frexp(a)[1].astype(np.int32), "f>i"),
    "v_div_scale_f32": Operation(div_scale, "fff>fM"),
    "v_div_fmas_f32": Operation(div_fmas, "fffm>f"),
    "v_div_fixup_f32": Operation(div_fixup, "fff>f"),
    "v_cvt_f32_u32": Operation(lambda a: a.astype(_F32), "u>f"),
    "v_cvt_f32_i32": Operation(lambda a: a.astype(_F32), "i>f"),
    "v_cvt_u32_f32": Operation(lambda a: _to_u32(a).astype(np.uint32), "f>u"),
    "v_cvt_i32_f32": Operation(lambda a: _to_i32(a).astype(np.int32), "f>i"),
    "v_cvt_f32_ubyte0": Operation(_byte(0), "u>f"),
    "v_cvt_f32_ubyte1": Operation(_byte(1), "u>f"),
    "v_cvt_f32_ubyte2": Operation(_byte(2), "u>f"),
    "v_cvt_f32_ubyte3": Operation(_byte(3), "u>f"),
    "v_cvt_f32_f16": Operation(lambda a: from_fp16(a & np.uint32(0xFFFF)), "u>f"),
    "v_cvt_f16_f32": Operation(to_fp16, "f>u"),
    "v_cvt_pk_f16_f32": Operation(_pack_fp16, "ff>u"),
    "v_cvt_pk_bf16_f32": Operation(_pack_bf16, "ff>u"),
}
