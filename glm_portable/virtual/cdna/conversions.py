"""Number formats: BF16, FP16 and the FP8 dialects, from and to float32, in round to nearest even.

OCP 8-bit floating point (OFP8 1.0): e4m3 has no infinity and NaN is S.1111.111; e5m2 is as IEEE.
FNUZ (gfx942): the exponent's bias is one more, there is neither infinity nor -0, and 0x80 is NaN.
An infinity converts to infinity, or NaN where there is none, also under MODE.FP16_OVFL, of which
the ISA documents say that it clamps what overflows and preserves a true infinity.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Codes = NDArray[np.uint32]


@dataclass(frozen=True)
class MiniFloat:
    """An 8-bit format. infinity and nan: the code of the positive one (infinity None: there is
    none, and overflow gives NaN)."""

    name: str
    mantissa_bits: int
    bias: int
    largest_code: int
    infinity: int | None
    nan: int
    negative_zero: bool

    @cached_property
    def magnitudes(self) -> NDArray[np.float64]:
        """The finite values that are not negative, ascending: the value of code i at i."""
        code = np.arange(self.largest_code + 1)
        fraction = code & ((1 << self.mantissa_bits) - 1)
        exponent = code >> self.mantissa_bits
        significand = fraction + (exponent > 0) * (1 << self.mantissa_bits)
        magnitudes: NDArray[np.float64] = np.ldexp(
            significand.astype(np.float64),
            np.maximum(exponent, 1) - self.bias - self.mantissa_bits,
        )
        return magnitudes

    @cached_property
    def values(self) -> Floats:
        """The value of each of the 256 codes."""
        half = np.full(128, np.nan, np.float32)
        half[: self.largest_code + 1] = self.magnitudes
        if self.infinity is not None:
            half[self.infinity] = np.inf
        both: Floats = np.concatenate([half, -half])
        if not self.negative_zero:
            both[0x80] = np.nan
        return both

    def decode(self, codes: NDArray[Any]) -> Floats:
        values: Floats = self.values[codes & 0xFF]
        return values

    def encode(self, x: Floats, clamp: bool) -> Codes:
        """clamp: a finite value that overflows becomes the largest one, and not infinity or NaN."""
        magnitude = np.abs(x.astype(np.float64))
        with np.errstate(invalid="ignore"):
            _, exponent = np.frexp(magnitude)
            lowest = 1 - self.bias
            quantum = np.ldexp(1.0, np.maximum(exponent - 1, lowest) - self.mantissa_bits)
            rounded = np.rint(magnitude / quantum) * quantum
        top = self.magnitudes[-1]
        code = np.searchsorted(self.magnitudes, np.minimum(rounded, top)).astype(np.uint32)
        overflow = rounded > top if not clamp else np.isinf(magnitude)
        code = np.where(overflow, self.nan if self.infinity is None else self.infinity, code)
        code = np.where(np.isnan(x), self.nan, code)
        signed = np.signbit(x) & (self.negative_zero | ((code != 0) & (code != self.nan)))
        codes: Codes = (code | signed * np.uint32(0x80)).astype(np.uint32)
        return codes


E4M3FN = MiniFloat("e4m3fn", 3, 7, 0x7E, None, 0x7F, True)
E5M2 = MiniFloat("e5m2", 2, 15, 0x7B, 0x7C, 0x7F, True)
E4M3FNUZ = MiniFloat("e4m3fnuz", 3, 8, 0x7F, None, 0x80, False)
E5M2FNUZ = MiniFloat("e5m2fnuz", 2, 16, 0x7F, None, 0x80, False)


def to_bf16(x: Floats) -> Codes:
    """float32 -> the 16 bits of BF16; a NaN stays one (quieted)."""
    bits = x.view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + (bits >> np.uint32(16) & np.uint32(1))) >> np.uint32(16)
    return np.where(np.isnan(x), bits >> np.uint32(16) | np.uint32(0x40), rounded)


def from_bf16(codes: Codes) -> Floats:
    return (codes << np.uint32(16)).view(np.float32)


def to_fp16(x: Floats) -> Codes:
    with np.errstate(over="ignore"):
        return x.astype(np.float16).view(np.uint16).astype(np.uint32)


def to_fp16_saturated(x: Floats) -> Codes:
    """As to_fp16, but a finite value that overflows becomes the largest one."""
    codes = to_fp16(x)
    overflow = (codes & np.uint32(0x7FFF) == 0x7C00) & np.isfinite(x)
    return np.where(overflow, codes - np.uint32(1), codes)


def to_fp16_toward_zero(x: Floats) -> Codes:
    codes = to_fp16(x)
    larger = np.abs(from_fp16(codes)) > np.abs(x)
    return np.where(larger, codes - np.uint32(1), codes)


def from_fp16(codes: Codes) -> Floats:
    return codes.astype(np.uint16).view(np.float16).astype(np.float32)
