"""V_DIV_*: the sequence that LLVM writes gives correctly rounded quotients, extremes included."""

import random

from tests.virtual.cdna.ieee import F32, F32_EDGES
from tests.virtual.cdna.single import (
    new_wave,
    set_vector,
    step,
    vector,
)

ZERO, ONE, MINUS = 0, 0x3F800000, 0x80000000

# Division: the sequence that LLVM writes for a correctly rounded quotient

DIVISION = """
v_div_scale_f32 v3, s[0:1], v1, v1, v2
v_rcp_f32_e32 v4, v3
v_div_scale_f32 v5, vcc, v2, v1, v2
v_fma_f32 v6, -v3, v4, 1.0
v_fmac_f32_e32 v4, v6, v4
v_mul_f32_e32 v6, v5, v4
v_fma_f32 v7, -v3, v6, v5
v_fmac_f32_e32 v6, v7, v4
v_fma_f32 v3, -v3, v6, v5
v_div_fmas_f32 v3, v3, v4, v6
v_div_fixup_f32 v0, v3, v1, v2
"""


def check_division(rows: list[tuple[int, int]]) -> None:
    wave = new_wave()
    for start in range(0, len(rows), 64):
        part = rows[start : start + 64]
        set_vector(wave, 2, [n for n, _ in part])
        set_vector(wave, 1, [d for _, d in part])
        for line in DIVISION.strip().splitlines():
            step(wave, line)
        for (n, d), actual in zip(part, vector(wave, 0), strict=False):
            expected = F32.divide(n, d)
            assert F32.same(actual, expected), f"{n:#x} / {d:#x} came {actual:#x}, not {expected}"


def test_division_of_edges() -> None:
    more = [0x01000000, 0x7E800000, 0x7F000000, 0x0C000000, 0x72800000, 0x3F800001, 0x00000003]
    check_division([(n, d) for n in F32_EDGES + more for d in F32_EDGES + more])


def test_division_of_random_numbers() -> None:
    draw = random.Random(11)
    rows = [(draw.getrandbits(32), draw.getrandbits(32)) for _ in range(1500)]
    tiny = [(draw.getrandbits(25), draw.getrandbits(30)) for _ in range(500)]  # denormal quotients
    large = [(0x7F7FFFFF - draw.getrandbits(26), draw.getrandbits(28)) for _ in range(300)]
    check_division(rows + tiny + large)


def test_division_step_by_step() -> None:
    """V_DIV_SCALE_F32 leaves what needs no scaling; the extremes are scaled by 2^64."""

    def scale(value: int, denominator: int, numerator: int) -> tuple[int, int]:
        wave = new_wave()
        for register, word in ((1, value), (2, denominator), (3, numerator)):
            set_vector(wave, register, word)
        step(wave, "v_div_scale_f32 v0, vcc, v1, v2, v3")
        return vector(wave, 0)[0], wave.vcc & 1

    one, two, big, small = ONE, 0x40000000, 0x7F000000, 0x01000000
    assert scale(one, one, two) == (one, 0) and scale(two, one, two) == (two, 0)
    assert scale(small, small, big) == (small + (64 << 23), 1)  # a quotient near overflow
    assert scale(big, small, big) == (big, 1)
    assert scale(big + 1, big + 1, 0x41000000) == (
        big + 1 - (64 << 23),
        0,
    )  # its reciprocal denormal
    assert scale(0x41000000, big + 1, 0x41000000) == (0x41000000 - (64 << 23), 0)
    assert scale(big + 1, big + 1, one) == (big + 1 - (64 << 23), 1)  # and the quotient, too
    assert scale(one, big + 1, one) == (one, 1)
    assert scale(1, one, 1) == (F32.round(F32.value(1) * 2**64), 1)  # a denormal quotient
    assert scale(one, one, 1) == (one, 1)
    assert F32.is_nan(scale(ZERO, ZERO, one)[0]) and F32.is_nan(scale(one, one, MINUS)[0])
