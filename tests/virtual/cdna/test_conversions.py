"""FP8 and BF16 conversions, against the formats' definitions in exact fractions."""

from bisect import bisect
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property

import numpy as np
import pytest

from glm_portable.virtual.cdna.conversions import E4M3FN, E4M3FNUZ, E5M2, E5M2FNUZ, MiniFloat
from tests.virtual.cdna.ieee import BF16, F16, F32, F32_EDGES, Format
from tests.virtual.cdna.single import (
    check_lanes,
    new_wave,
    pair,
    refused,
    set_vector,
    step,
    vector,
)

MINUS = 0x80000000


@dataclass(frozen=True)
class Eight:
    """An 8-bit format by its definition: OCP's (OFP8 1.0), or FNUZ's, whose bias is one more, whose
    only NaN is 0x80, and which has no infinity. ieee: infinities as IEEE 754 (OCP's e5m2)."""

    exponent_bits: int
    fnuz: bool
    ieee: bool
    form: MiniFloat

    @property
    def fraction_bits(self) -> int:
        return 7 - self.exponent_bits

    @property
    def bias(self) -> int:
        return (1 << self.exponent_bits - 1) - 1 + self.fnuz

    def value(self, code: int) -> Fraction | str:
        """A number, or what it is instead."""
        magnitude, negative = code & 0x7F, code >> 7
        if self.fnuz and code == 0x80 or not self.fnuz and not self.ieee and magnitude == 0x7F:
            return "nan"
        if self.ieee and magnitude >= 0x7C:
            return "nan" if magnitude > 0x7C else "-inf" if negative else "inf"
        exponent, fraction = magnitude >> self.fraction_bits, magnitude % (1 << self.fraction_bits)
        if exponent:
            fraction += 1 << self.fraction_bits
        number = Fraction(fraction) * Fraction(2) ** (
            max(exponent, 1) - self.bias - self.fraction_bits
        )
        return -number if negative else number

    @cached_property
    def numbers(self) -> list[Fraction]:
        """The numbers that are not negative, of the codes from 0 on."""
        values = (self.value(code) for code in range(0x80))
        return [value for value in values if isinstance(value, Fraction)]

    def encode(self, bits: int, clamp: bool) -> int:
        """From float32, the nearest number, ties to the even code."""
        negative = bits >> 31
        nan = 0x80 if self.fnuz else 0x7F | negative << 7
        if F32.is_nan(bits):
            return nan
        largest, top = len(self.numbers) - 1, self.numbers[-1]
        beyond = top + (top - self.numbers[-2]) / 2
        infinite = F32.is_infinite(bits)
        exact = Fraction(0) if infinite else abs(F32.value(bits))
        if infinite or not clamp and (exact > beyond or exact == beyond and largest & 1):
            return 0x7C | negative << 7 if self.ieee else nan
        at = bisect(self.numbers, exact)
        near = range(max(at - 1, 0), min(at + 1, largest + 1))
        nearest = min(near, key=lambda c: (abs(self.numbers[c] - exact), c & 1))
        if self.fnuz and nearest == 0:
            return 0
        return nearest | negative << 7


FORMATS = {
    "e4m3fn": Eight(4, False, False, E4M3FN),
    "e5m2": Eight(5, False, True, E5M2),
    "e4m3fnuz": Eight(4, True, False, E4M3FNUZ),
    "e5m2fnuz": Eight(5, True, False, E5M2FNUZ),
}
INSTRUCTIONS = {
    ("gfx942", "fp8"): "e4m3fnuz",
    ("gfx942", "bf8"): "e5m2fnuz",
    ("gfx950", "fp8"): "e4m3fn",
    ("gfx950", "bf8"): "e5m2",
}


def as_float32(form: Eight, code: int) -> int | None:
    value = form.value(code)
    if isinstance(value, Fraction):
        return F32.round(value, bool(code >> 7) and not form.fnuz)
    return {"nan": None, "inf": 0x7F800000, "-inf": 0xFF800000}[value]


def test_largest_numbers() -> None:
    tops = {name: f.numbers[-1] for name, f in FORMATS.items()}
    assert tops == {"e4m3fn": 448, "e5m2": 57344, "e4m3fnuz": 240, "e5m2fnuz": 57344}


@pytest.mark.parametrize(("arch", "kind"), INSTRUCTIONS)
def test_every_code_decodes(arch: str, kind: str) -> None:
    """All 256 codes, in each byte of a register, by each instruction."""
    form = FORMATS[INSTRUCTIONS[arch, kind]]
    for byte in range(4):
        words = [(c << 8 * byte | 0x5A5A5A5A & ~(0xFF << 8 * byte)) for c in range(256)]
        tail = f"src0_sel:BYTE_{byte}"
        check_lanes(
            f"v_cvt_f32_{kind}_sdwa v0, v1 {tail}",
            lambda a: as_float32(form, a >> 8 * byte & 0xFF),  # noqa: B023
            [words],
            arch,
            same=F32.same,
        )
    wave = new_wave(arch)
    for start in range(0, 256, 64):
        codes = range(start, start + 64)
        set_vector(wave, 2, [c | (255 - c) << 8 | 0x77 << 16 | c << 24 for c in codes])
        for text, low, high in (
            (f"v_cvt_pk_f32_{kind}_e32 v[0:1], v2", 0, 8),
            (f"v_cvt_pk_f32_{kind}_sdwa v[0:1], v2 src0_sel:WORD_1", 16, 24),
            (f"v_cvt_pk_f32_{kind}_e64 v[0:1], v2 op_sel:[1,0]", 16, 24),
        ):
            step(wave, text)
            for word, both in zip(vector(wave, 2), pair(wave, 0), strict=True):
                assert F32.same(both & 0xFFFFFFFF, as_float32(form, word >> low & 0xFF))
                assert F32.same(both >> 32, as_float32(form, word >> high & 0xFF))


def neighbours(form: Eight) -> list[int]:
    """float32 patterns of every number, every tie between two, and those beside them."""
    numbers = form.numbers
    ties = [(a + b) / 2 for a, b in zip(numbers, numbers[1:], strict=False)]
    beyond = numbers[-1] + (numbers[-1] - numbers[-2]) / 2
    exact = [F32.round(x) for x in (*numbers, *ties, beyond, 2 * beyond)]
    near = [max(x + d, 0) for x in exact for d in (-1, 0, 1)]
    return sorted({x | sign for x in (*near, *F32_EDGES) for sign in (0, MINUS)})


@pytest.mark.parametrize("clamp", [False, True])
@pytest.mark.parametrize(("arch", "kind"), INSTRUCTIONS)
def test_every_tie_encodes(arch: str, kind: str, clamp: bool) -> None:
    """FP16_OVFL decides whether overflow clamps; an infinity does not."""
    form = FORMATS[INSTRUCTIONS[arch, kind]]
    values = neighbours(form)
    wave = new_wave(arch)
    step(wave, f"s_setreg_imm32_b32 hwreg(HW_REG_MODE, 23, 1), {int(clamp)}")
    for start in range(0, len(values), 64):
        part = values[start : start + 64]
        part += [0] * (64 - len(part))
        set_vector(wave, 0, 0xABCD1234)
        set_vector(wave, 1, part)
        set_vector(wave, 2, part[::-1])
        step(wave, f"v_cvt_pk_{kind}_f32 v0, v1, v2")
        for i, word in enumerate(vector(wave, 0)):
            assert word >> 16 == 0xABCD
            for code, bits in ((word & 0xFF, part[i]), (word >> 8 & 0xFF, part[63 - i])):
                expected = form.encode(bits, clamp)
                same_nan = form.value(code) == form.value(expected) == "nan"
                assert code == expected or same_nan, f"{kind} of {bits:#x} came {code:#x}"
        step(wave, f"v_cvt_pk_{kind}_f32 v0, v2, v2 op_sel:[0,0,1]")
        for i, word in enumerate(vector(wave, 0)):
            expected = form.encode(part[63 - i], clamp)
            if form.value(expected) != "nan":
                assert word >> 16 == expected * 0x101
            assert form.value(word & 0xFF) == form.value(form.encode(part[i], clamp))


@pytest.mark.parametrize("name", FORMATS)
def test_codes_survive_both_ways(name: str) -> None:
    form = FORMATS[name].form
    for code in range(256):
        value = FORMATS[name].value(code)
        if isinstance(value, Fraction):
            again = form.encode(form.decode(np.array([code], np.uint32)), clamp=False)
            assert int(again[0]) == code


def narrowed(bits: int, form: Format) -> int | None:
    if F32.is_nan(bits):
        return None
    if F32.is_infinite(bits):
        return form.signed(F32.sign(bits), form.infinity)
    return form.round(F32.value(bits), bool(F32.sign(bits)))


BF16_TIES = [0x3F808000, 0x3F818000, 0x3F807FFF, 0x3F808001, 0x7F7F8000, 0x00008000, 0x00018000]


def test_bf16() -> None:
    """Round to nearest even, NaN kept and quieted, overflow to infinity."""
    values = [x ^ s for x in (*F32_EDGES, *BF16_TIES, 0x7F800001, 0x7FFFFFFF) for s in (0, MINUS)]

    def same(actual: int, expected: int | None) -> bool:
        assert expected is not None
        words = [(actual >> shift & 0xFFFF, expected >> shift & 0xFFFF) for shift in (0, 16)]
        return all(BF16.same(a, None if e == 0xFFFF else e) for a, e in words)

    def oracle(a: int, b: int) -> int:
        low, high = (narrowed(x, BF16) for x in (a, b))
        return (0xFFFF if low is None else low) | (0xFFFF if high is None else high) << 16

    check_lanes("v_cvt_pk_bf16_f32 v0, v1, v2", oracle, [values, values], "gfx950", same=same)
    wave = new_wave("gfx950")
    set_vector(wave, 1, 0x7F800001)
    step(wave, "v_cvt_pk_bf16_f32 v0, v1, v1")
    assert vector(wave, 0)[0] == 0x7FC07FC0


# gfx950: a float32 scale counts by its exponent alone

SCALES = {
    0x3F800000: 0,
    0x3FFFFFFF: 0,
    0x40000000: 1,
    0x3E800001: -2,
    0x00000000: -127,
    0xBF800000: 0,
}
"""The power of two of each scale; the sign and the fraction do not count."""


@pytest.mark.parametrize("kind", ["fp8", "bf8"])
@pytest.mark.parametrize("target", ["f32", "bf16", "f16"])
def test_scaled_decoding(target: str, kind: str) -> None:
    form = FORMATS[INSTRUCTIONS["gfx950", kind]]
    small = {"f32": F32, "bf16": BF16, "f16": F16}[target]

    def expected(code: int, power: int) -> int | None:
        value = form.value(code)
        if isinstance(value, Fraction):
            return small.round(value * Fraction(2) ** power, bool(code >> 7))
        return {"nan": None, "inf": small.infinity, "-inf": small.signed(1, small.infinity)}[value]

    for scale, power in SCALES.items():
        for start in range(0, 256, 64):
            wave = new_wave("gfx950")
            codes = range(start, start + 64)
            set_vector(wave, 2, [c << 16 | (c ^ 0x81) << 24 | 0x3C3C for c in codes])
            set_vector(wave, 3, scale)
            width = "v[0:1]" if target == "f32" else "v0"
            step(wave, f"v_cvt_scalef32_pk_{target}_{kind} {width}, v2, v3 op_sel:[1,0,0]")
            for i, code in enumerate(codes):
                if target == "f32":
                    results = [vector(wave, 0)[i], vector(wave, 1)[i]]
                else:
                    word = vector(wave, 0)[i]
                    results = [word & 0xFFFF, word >> 16]
                for actual, which in zip(results, (code, code ^ 0x81), strict=True):
                    assert small.same(actual, expected(which, power)), (hex(which), hex(scale))
    wave = new_wave("gfx950")
    set_vector(wave, 2, 0x7878)  # 256 or 32768, times 2^10
    step(wave, f"v_cvt_scalef32_pk_f16_{kind} v0, v2, 0x44800000")
    assert vector(wave, 0)[0] == 0x7C007C00
    step(wave, "s_setreg_imm32_b32 hwreg(HW_REG_MODE, 23, 1), 1")
    step(wave, f"v_cvt_scalef32_pk_f16_{kind} v0, v2, 0x44800000")
    assert vector(wave, 0)[0] == 0x7BFF7BFF
    set_vector(wave, 2, 0x38)
    step(wave, f"v_cvt_scalef32_pk_f32_{kind} v[0:1], v2, 0x7f800000")
    assert F32.is_nan(vector(wave, 0)[0])


@pytest.mark.parametrize("kind", ["fp8", "bf8"])
@pytest.mark.parametrize("source", ["f32", "bf16", "f16"])
def test_scaled_encoding(source: str, kind: str) -> None:
    form = FORMATS[INSTRUCTIONS["gfx950", kind]]
    wide = {"f32": F32, "bf16": BF16, "f16": F16}[source]
    numbers = [
        wide.round(Fraction(n, 16) * Fraction(2) ** p, n < 0)
        for n in (0, 1, -1, 17, 18, 19, -25, 27, 300)
        for p in (-12, -6, 0, 5)
    ]
    for scale, power in SCALES.items():
        if power == -127:
            continue
        wave = new_wave("gfx950")
        set_vector(wave, 0, 0x12345678)
        first, second = numbers[:64], numbers[:64][::-1]
        set_vector(wave, 3, scale)
        if source == "f32":
            set_vector(wave, 1, first)
            set_vector(wave, 2, second)
            step(wave, f"v_cvt_scalef32_pk_{kind}_f32 v0, v1, v2, v3 op_sel:[0,0,0,1]")
        else:
            set_vector(wave, 1, [a | b << 16 for a, b in zip(first, second, strict=True)])
            step(wave, f"v_cvt_scalef32_pk_{kind}_{source} v0, v1, v3 op_sel:[0,0,1]")
        for i, (a, b) in enumerate(zip(first, second, strict=True)):
            word = vector(wave, 0)[i]
            assert word & 0xFFFF == 0x5678
            for code, bits in ((word >> 16 & 0xFF, a), (word >> 24, b)):
                scaled = F32.round(wide.value(bits) / Fraction(2) ** power, bool(wide.sign(bits)))
                expected = form.encode(scaled, clamp=False)
                assert form.value(code) == form.value(expected) and code >> 7 == expected >> 7


@pytest.mark.parametrize("arch", ["gfx942", "gfx950"])
@pytest.mark.parametrize("text", ["v_cvt_pk_f32_fp8 v[0:1], v{}", "v_cvt_pk_f32_bf8 v[0:1], v{}"])
@pytest.mark.parametrize("source", [0, 1])
def test_codes_may_lie_where_their_numbers_go(arch: str, text: str, source: int) -> None:
    results = []
    for register in (source, 2):
        wave = new_wave(arch)
        set_vector(wave, register, [0x3B + i | 0x42 + i << 8 for i in range(32)])
        step(wave, text.format(register))
        results.append(pair(wave, 0))
    assert results[0] == results[1]


def test_refusals() -> None:
    refused("v_cvt_scalef32_pk_fp8_f32 v0, v1, v2, v3", "not on gfx942")
    refused("v_cvt_scalef32_pk_f32_fp4 v[0:1], v2, v3", "not implemented", "gfx950")
    refused("v_cvt_sr_fp8_f32 v0, v1, v2", "not implemented", "gfx950")
    for name in ("v_cvt_pk_fp8", "v_cvt_pk_f32_fp8_f32", "v_cvt_f32_fp8_f32"):
        refused(f"{name} v0, v1, v2", f"{name} is not implemented")
    refused("v_cvt_pk_fp8_f32 v[0:1], v1, v2", "destination")
    refused("v_cvt_pk_fp8_f32 v0, v1, v2 op_sel:[1,0,0]", "op_sel of a source")
    refused("v_cvt_pk_f32_fp8 v0, v1", "destination")
    refused("v_cvt_scalef32_pk_bf16_fp8 v0, v1, v2 op_sel:[0,1,0]", "op_sel", "gfx950")
