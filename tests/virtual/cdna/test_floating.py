"""Floating-point vector instructions, against exact fractions and the ISA's definitions."""

import math
import random
import struct
from collections.abc import Callable
from fractions import Fraction

import pytest

from tests.virtual.cdna.ieee import F16, F16_EDGES, F32, F32_EDGES, Format
from tests.virtual.cdna.single import (
    M32,
    check_lanes,
    check_mask,
    new_wave,
    set_vector,
    signed,
    step,
    vector,
)

ZERO, ONE, INF, QUIET, SIGNALLING = 0, 0x3F800000, 0x7F800000, 0x7FC00001, 0xFF800001
MINUS = 0x80000000


def bits_of(x: float) -> int:
    return int.from_bytes(struct.pack("<f", x), "little")


def float_of(bits: int) -> float:
    value: float = struct.unpack("<f", bits.to_bytes(4, "little"))[0]
    return value


TWO: dict[str, Callable[[Format, int, int], int | None]] = {
    "v_add": lambda f, a, b: f.add(a, b),
    "v_sub": lambda f, a, b: f.add(a, f.negate(b)),
    "v_subrev": lambda f, a, b: f.add(b, f.negate(a)),
    "v_mul": lambda f, a, b: f.multiply(a, b),
    "v_min": lambda f, a, b: f.minimum(a, b),
    "v_max": lambda f, a, b: f.minimum(a, b, largest=True),
}
FORMATS = {"f32": (F32, F32_EDGES), "f16": (F16, F16_EDGES)}


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("name", TWO)
def test_two_sources(name: str, kind: str) -> None:
    form, edges = FORMATS[kind]
    oracle = TWO[name]
    check_lanes(
        f"{name}_{kind} v0, v1, v2",
        lambda a, b: oracle(form, a, b),
        [edges, edges],
        same=form.same,
    )


def three(form: Format, a: int, b: int, c: int, largest: bool) -> int:
    return form.minimum(form.minimum(a, b, largest), c, largest)


def median(form: Format, a: int, b: int, c: int) -> int:
    """As the ISA document: the larger of the two that are not the largest."""
    if form.is_nan(a) or form.is_nan(b) or form.is_nan(c):
        return three(form, a, b, c, False)
    top = three(form, a, b, c, True)
    if form.equal(top, a):
        return form.minimum(b, c, True)
    return form.minimum(a, c if form.equal(top, b) else b, True)


THREE: dict[str, Callable[[Format, int, int, int], int | None]] = {
    "v_fma": lambda f, a, b, c: f.fma(a, b, c),
    "v_min3": lambda f, a, b, c: three(f, a, b, c, False),
    "v_max3": lambda f, a, b, c: three(f, a, b, c, True),
    "v_med3": median,
}


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("name", THREE)
def test_three_sources(name: str, kind: str) -> None:
    form, edges = FORMATS[kind]
    oracle = THREE[name]
    few = [x for i, x in enumerate(edges) if i not in (3, 11, 15)]
    keeps = kind == "f16" and name != "v_fma"

    def expected(a: int, b: int, c: int) -> int | None:
        result = oracle(form, a, b, c)
        return result if result is None or not keeps else result | 0xBEEF0000

    check_lanes(
        f"{name}_{kind} v0, v1, v2, v3",
        expected,
        [few, few, few],
        same=form.same if not keeps else None,
        prepare=lambda wave: set_vector(wave, 0, 0xBEEF1234),
    )


def test_fma_rounds_once() -> None:
    """Sums whose rounding to float64 first would be seen: beside a tie of float32, by less than
    float64 holds; and random ones."""
    draw = random.Random(7)
    cases = [(0x3F800001, 0x3F800001, bits_of(s * 2.0**p)) for s in (1, -1) for p in range(-149, 0)]
    cases += [(bits_of(1 + 2**-12), bits_of(1 - 2**-12), bits_of(2.0**-p)) for p in range(20, 80)]
    cases += [
        (draw.getrandbits(32), draw.getrandbits(32), draw.getrandbits(32)) for _ in range(600)
    ]
    for i in range(600):
        a, b = (draw.getrandbits(23) | 0x3F800000 for _ in range(2))
        c = draw.getrandbits(24) | (draw.randrange(60, 130) << 23)
        cases.append((a, b, c | (i & 1) << 31))
    for start in range(0, len(cases), 64):
        rows = cases[start : start + 64]
        for text in ("v_fma_f32 v0, v1, v2, v3", "v_fmac_f32 v3, v1, v2"):
            wave = new_wave()
            for i in range(3):
                set_vector(wave, 1 + i, [row[i] for row in rows])
            step(wave, text)
            results = vector(wave, 3 if "fmac" in text else 0)
            for row, actual in zip(rows, results, strict=False):
                assert F32.same(actual, F32.fma(*row)), (text, [hex(x) for x in row], hex(actual))


def test_fma_with_a_literal() -> None:
    values = [*F32_EDGES]
    k = 0x40490FDB
    check_lanes(
        f"v_fmamk_f32 v0, v1, {k:#x}, v2",
        lambda a, b: F32.fma(a, k, b),
        [values] * 2,
        same=F32.same,
    )
    check_lanes(
        f"v_fmaak_f32 v0, v1, v2, {k:#x}",
        lambda a, b: F32.fma(a, b, k),
        [values] * 2,
        same=F32.same,
    )


def test_minimum3_and_maximum3_give_nan() -> None:
    def oracle(largest: bool) -> Callable[..., int | None]:
        def run(*x: int) -> int | None:
            a, b, c = x
            return None if any(F32.is_nan(i) for i in x) else three(F32, a, b, c, largest)

        return run

    few = F32_EDGES[:10]
    for name, largest in (("minimum", False), ("maximum", True)):
        check_lanes(
            f"v_{name}3_f32 v0, v1, v2, v3", oracle(largest), [few] * 3, "gfx950", same=F32.same
        )


COMPARE: dict[str, Callable[[Format, int, int], bool]] = {
    "lt": lambda f, a, b: f.less(a, b),
    "gt": lambda f, a, b: f.less(b, a),
    "le": lambda f, a, b: f.less(a, b) or f.equal(a, b),
    "ge": lambda f, a, b: f.less(b, a) or f.equal(a, b),
    "eq": lambda f, a, b: f.equal(a, b),
    "lg": lambda f, a, b: f.less(a, b) or f.less(b, a),
    "o": lambda f, a, b: not f.is_nan(a) and not f.is_nan(b),
}
NEGATED = {"u": "o", "nlt": "lt", "ngt": "gt", "nle": "le", "nge": "ge", "neq": "eq", "nlg": "lg"}


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("name", [*COMPARE, *NEGATED])
def test_comparisons(name: str, kind: str) -> None:
    form, edges = FORMATS[kind]
    positive = COMPARE[NEGATED.get(name, name)]
    check_mask(
        f"v_cmp_{name}_{kind} vcc, v1, v2",
        lambda a, b: positive(form, a, b) != (name in NEGATED),
        [edges, edges],
    )


@pytest.mark.parametrize("kind", FORMATS)
def test_class(kind: str) -> None:
    form, edges = FORMATS[kind]

    def oracle(a: int, wanted: int) -> bool:
        negative = form.sign(a)
        if form.is_nan(a):
            index = 0 if form.is_signalling(a) else 1
        elif form.is_infinite(a):
            index = 2 if negative else 9
        elif form.magnitude(a) == 0:
            index = 5 if negative else 6
        elif form.is_denormal(a):
            index = 4 if negative else 7
        else:
            index = 3 if negative else 8
        return bool(wanted >> index & 1)

    wanted = [1 << i for i in range(10)] + [0x3FF, 0x204, 0x1F8]
    check_mask(f"v_cmp_class_{kind} vcc, v1, v2", oracle, [edges, wanted])


def rounded(function: Callable[[Fraction], int]) -> Callable[[Format, int], int | None]:
    """A function to integers, of numbers; zero keeps the argument's sign; else unchanged."""

    def run(form: Format, a: int) -> int | None:
        if form.is_nan(a):
            return None
        if form.is_infinite(a):
            return a
        return form.round(Fraction(function(form.value(a))), bool(form.sign(a)))

    return run


ROUND: dict[str, Callable[[Format, int], int | None]] = {
    "v_floor": rounded(math.floor),
    "v_ceil": rounded(math.ceil),
    "v_trunc": rounded(math.trunc),
    "v_rndne": rounded(round),
}
TIES = [0x3F000000, 0x3FC00000, 0x40200000, 0xBF000000, 0xBFC00000, 0x4B000001, 0x4A800001]
TIES16 = [0x3800, 0x3E00, 0x4100, 0xB800, 0xBE00, 0x63FF]


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("name", ROUND)
def test_rounding_to_integers(name: str, kind: str) -> None:
    form, edges = FORMATS[kind]
    values = edges + (TIES if kind == "f32" else TIES16)
    check_lanes(f"{name}_{kind} v0, v1", lambda a: ROUND[name](form, a), [values], same=form.same)


def test_fract_stays_below_one() -> None:
    def oracle(a: int) -> int | None:
        if F32.is_nan(a) or F32.is_infinite(a):
            return None
        exact = F32.value(a) - math.floor(F32.value(a))
        return min(F32.round(exact), 0x3F7FFFFF)

    check_lanes("v_fract_f32 v0, v1", oracle, [[*F32_EDGES, *TIES, 0xB0000001]], same=F32.same)


def test_ldexp() -> None:
    def oracle(a: int, n: int) -> int | None:
        if F32.is_nan(a):
            return None
        if F32.is_infinite(a):
            return a
        power = max(-600, min(600, signed(n, 32)))
        return F32.round(F32.value(a) * Fraction(2) ** power, bool(F32.sign(a)))

    counts = [
        0,
        1,
        M32,
        23,
        M32 - 22,
        127,
        128,
        149,
        M32 - 148,
        M32 - 149,
        300,
        0x7FFFFFFF,
        0x80000000,
    ]
    check_lanes("v_ldexp_f32 v0, v1, v2", oracle, [F32_EDGES, counts], same=F32.same)


def test_frexp() -> None:
    def mantissa(a: int) -> int | None:
        if F32.is_nan(a):
            return None
        if F32.is_infinite(a) or F32.magnitude(a) == 0:
            return a
        return F32.round(F32.value(a) / Fraction(2) ** signed(exponent(a), 32))

    def exponent(a: int) -> int:
        if F32.magnitude(a) == 0 or F32.magnitude(a) >= F32.infinity:
            return 0
        return math.frexp(float_of(a))[1] & M32

    check_lanes("v_frexp_mant_f32 v0, v1", mantissa, [F32_EDGES], same=F32.same)
    check_lanes("v_frexp_exp_i32_f32 v0, v1", exponent, [F32_EDGES])


# Transcendentals: within 1 ULP, denormals taken for zero, and the ISA document's special values

UNARY: dict[str, Callable[[float], float]] = {
    "v_rcp_f32": lambda x: 1 / x,
    "v_rcp_iflag_f32": lambda x: 1 / x,
    "v_rsq_f32": lambda x: 1 / math.sqrt(x),
    "v_sqrt_f32": math.sqrt,
    "v_exp_f32": lambda x: 2.0**x,
    "v_log_f32": math.log2,
    "v_sin_f32": lambda x: math.sin(2 * math.pi * x),
    "v_cos_f32": lambda x: math.cos(2 * math.pi * x),
}
SPECIAL: dict[str, dict[int, int | None]] = {
    "v_rcp_f32": {0xFF800000: MINUS, 0xC0000000: 0xBF000000, MINUS: 0xFF800000, 0: INF, INF: 0},
    "v_rcp_iflag_f32": {INF: 0, 0: INF, 0x7F000001: 0, 0xFF000001: MINUS},
    "v_rsq_f32": {0xFF800000: None, MINUS: 0xFF800000, 0: INF, 0x40800000: 0x3F000000, INF: 0},
    "v_sqrt_f32": {0xFF800000: None, MINUS: MINUS, 0: 0, 0x40800000: 0x40000000, INF: INF},
    "v_exp_f32": {0xFF800000: 0, MINUS: ONE, INF: INF, 0x43000000: INF, 0xC2FC0001: 0, 1: ONE},
    "v_log_f32": {
        0xFF800000: None, 0xBF800000: None, MINUS: 0xFF800000, 0: 0xFF800000, ONE: 0, INF: INF,
        1: 0xFF800000, 0x007FFFFF: 0xFF800000, 0x80000001: 0xFF800000, 0x00800000: 0xC2FC0000,
    },
    "v_sin_f32": {0xFF800000: None, 0xFF7FFFFF: 0, MINUS: MINUS, 0x3E800000: ONE, INF: None, 1: 0},
    "v_cos_f32": {0xFF800000: None, 0xFF7FFFFF: ONE, MINUS: ONE, INF: None, 0x43800000: ONE},
}  # fmt: skip
FLUSHED = {
    "v_rcp_f32": {1: INF, 0x80000001: 0xFF800000, 0x7F000001: 0, 0xFF7FFFFF: MINUS},
    "v_rsq_f32": {1: INF, 0x007FFFFF: INF},
    "v_sqrt_f32": {1: 0, 0x807FFFFF: MINUS},
}


@pytest.mark.parametrize("name", UNARY)
def test_transcendentals(name: str) -> None:
    draw = random.Random(3)
    numbers = [bits_of(draw.uniform(0.01, 100)) for _ in range(60)] + [0x3F800000, 0x40000000]
    if name not in ("v_rsq_f32", "v_sqrt_f32", "v_log_f32"):
        numbers += [x | MINUS for x in numbers]

    def near(actual: int, expected: int | None) -> bool:
        assert expected is not None
        if name in ("v_sin_f32", "v_cos_f32"):  # relative to 1, as the phase is
            return abs(float_of(actual) - float_of(expected)) < 2**-22
        return abs(F32.order(actual) - F32.order(expected)) <= 1

    check_lanes(f"{name} v0, v1", lambda a: bits_of(UNARY[name](float_of(a))), [numbers], same=near)
    special = SPECIAL[name] | FLUSHED.get(name, {}) | {QUIET: None, SIGNALLING: None}
    check_lanes(f"{name} v0, v1", lambda a: special[a], [list(special)], same=F32.same)


def test_half_transcendentals_keep_denormals() -> None:
    def near(actual: int, expected: int | None) -> bool:
        return F16.same(actual, expected) or abs(actual - (expected or 0)) <= 1

    cases: dict[str, dict[int, int | None]] = {
        "v_rcp_f16": {0xFC00: 0x8000, 0xC000: 0xB800, 0x8000: 0xFC00, 0: 0x7C00, 0x7BFF: 0x0100},
        "v_sqrt_f16": {0xFC00: None, 0x8000: 0x8000, 0x4400: 0x4000, 0x7C00: 0x7C00, 4: 0x1000},
        "v_rsq_f16": {0xFC00: None, 0x8000: 0xFC00, 0: 0x7C00, 0x4400: 0x3800, 0x7C00: 0},
        "v_log_f16": {0xFC00: None, 0xBC00: None, 0x8000: 0xFC00, 0x3C00: 0, 1: 0xCE00},
        "v_exp_f16": {0xFC00: 0, 0x8000: 0x3C00, 0x7C00: 0x7C00, 0xCE00: 1, 0x4C00: 0x7C00},
    }
    for name, values in cases.items():
        check_lanes(f"{name} v0, v1", lambda a: values[a], [list(values)], same=near)  # noqa: B023
