"""16-bit vector operations, of float16 and integers (CDNA3 ISA sections 12.7 to 12.11).

A result's upper half is zero for the instructions that LLVM relies on to zero it
(GCNSubtarget::zeroesHigh16BitsOfDest), and is kept as it was for the others, of which the ISA
document says that they write 16 bits. float16 keeps denormals, transcendentals included.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from glm_portable.virtual.cdna.floating import (
    exact_fma,
    maximum3_number,
    maximum_number,
    median,
    minimum3_number,
    minimum_number,
    to_integer,
)
from glm_portable.virtual.cdna.lanes import Vector
from glm_portable.virtual.cdna.operation import Operation

_F16 = np.float16
_LARGEST = _F16(65504)
_COUNT = np.uint32(15)


def saturated(function: Callable[..., Vector]) -> Callable[..., Vector]:
    """The function under MODE.FP16_OVFL: what overflows becomes the largest finite value; an
    infinity that comes from an infinite source stays one."""

    def run(*sources: Vector) -> Vector:
        result = function(*sources)
        infinite = np.zeros(len(result), np.bool_)
        for source in sources:
            infinite |= np.isinf(source)
        return np.where(np.isinf(result) & ~infinite, np.copysign(_LARGEST, result), result)

    return run


def _arithmetic(function: Callable[..., Vector], signature: str, keeps: bool = False) -> Operation:
    return Operation(function, signature, saturated=saturated(function), keeps_upper=keeps)


def fma16(a: Vector, b: Vector, c: Vector) -> Vector:
    """Rounded once."""
    return exact_fma(a, b, c).astype(_F16)


def _wide(function: Callable[[Vector], Vector]) -> Operation:
    """A function taken in float64 and rounded."""
    return _arithmetic(lambda a: function(a.astype(np.float64)).astype(_F16), "h>h")


def _to_word(low: int, high: int) -> Operation:
    convert = to_integer(low, high)
    return Operation(lambda a: convert(a).astype(np.uint32), "h>w", keeps_upper=True)


def _three(function: Callable[[Any, Any], Any]) -> Callable[[Any, Any, Any], Any]:
    return lambda a, b, c: function(function(a, b), c)


def _median(a: Vector, b: Vector, c: Vector) -> Vector:
    return np.maximum(np.minimum(a, b), np.minimum(np.maximum(a, b), c))


def _kept(function: Callable[..., Vector], signature: str) -> Operation:
    return Operation(function, signature, keeps_upper=True)


OPERATIONS: dict[str, Operation] = {
    "v_add_f16": _arithmetic(lambda a, b: a + b, "hh>h"),
    "v_sub_f16": _arithmetic(lambda a, b: a - b, "hh>h"),
    "v_subrev_f16": _arithmetic(lambda a, b: b - a, "hh>h"),
    "v_mul_f16": _arithmetic(lambda a, b: a * b, "hh>h"),
    "v_fma_f16": _arithmetic(fma16, "hhh>h"),
    "v_min_f16": Operation(minimum_number, "hh>h"),
    "v_max_f16": Operation(maximum_number, "hh>h"),
    "v_min3_f16": _kept(minimum3_number, "hhh>h"),
    "v_max3_f16": _kept(maximum3_number, "hhh>h"),
    "v_med3_f16": _kept(median, "hhh>h"),
    "v_floor_f16": Operation(np.floor, "h>h"),
    "v_ceil_f16": Operation(np.ceil, "h>h"),
    "v_trunc_f16": Operation(np.trunc, "h>h"),
    "v_rndne_f16": Operation(np.rint, "h>h"),
    "v_sqrt_f16": _wide(np.sqrt),
    "v_rcp_f16": _wide(lambda a: 1 / a),
    "v_rsq_f16": _wide(lambda a: 1 / np.sqrt(a)),
    "v_exp_f16": _wide(np.exp2),
    "v_log_f16": _wide(np.log2),
    "v_cvt_f16_u16": _arithmetic(lambda a: a.astype(_F16), "w>h"),
    "v_cvt_f16_i16": _arithmetic(lambda a: a.astype(_F16), "j>h"),
    "v_cvt_u16_f16": _to_word(0, 2**16 - 1),
    "v_cvt_i16_f16": _to_word(-(2**15), 2**15 - 1),
    "v_pack_b32_f16": Operation(lambda a, b: a | b << np.uint32(16), "pp>u"),
    "v_add_u16": Operation(lambda a, b: a + b, "ww>w"),
    "v_sub_u16": Operation(lambda a, b: a - b, "ww>w"),
    "v_subrev_u16": Operation(lambda a, b: b - a, "ww>w"),
    "v_mul_lo_u16": Operation(lambda a, b: a * b, "ww>w"),
    "v_mad_u16": Operation(lambda a, b, c: a * b + c, "www>w"),
    "v_lshlrev_b16": Operation(lambda n, a: a << (n & _COUNT), "ww>w"),
    "v_lshrrev_b16": Operation(lambda n, a: a >> (n & _COUNT), "ww>w"),
    "v_ashrrev_i16": Operation(lambda n, a: a >> (n & 15), "jj>w"),
    "v_min_u16": Operation(np.minimum, "ww>w"),
    "v_max_u16": Operation(np.maximum, "ww>w"),
    "v_min_i16": Operation(np.minimum, "jj>w"),
    "v_max_i16": Operation(np.maximum, "jj>w"),
    "v_min3_u16": _kept(_three(np.minimum), "www>w"),
    "v_max3_u16": _kept(_three(np.maximum), "www>w"),
    "v_med3_u16": _kept(_median, "www>w"),
    "v_min3_i16": _kept(_three(np.minimum), "jjj>w"),
    "v_max3_i16": _kept(_three(np.maximum), "jjj>w"),
    "v_med3_i16": _kept(_median, "jjj>w"),
}
