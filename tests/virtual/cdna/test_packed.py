"""Packed and mixed instructions, and their op_sel, op_sel_hi, neg_lo and neg_hi."""

from collections.abc import Callable
from itertools import product

import pytest

from tests.virtual.cdna.ieee import F16, F16_EDGES, F32, F32_EDGES
from tests.virtual.cdna.single import (
    check_lanes,
    new_wave,
    refused,
    set_scalar,
    set_vector,
    signed,
    step,
    vector,
)

MINUS = 0x80000000
PAIRS: dict[str, Callable[..., int | None]] = {
    "v_pk_add_f32": F32.add,
    "v_pk_mul_f32": F32.multiply,
    "v_pk_fma_f32": F32.fma,
}
WORDS = [0x3F800000, 0xC0490FDB, 0x00000001, 0x7F7FFFFF, 0x80000000, 0x7F800000, 0x33800001]


def modifiers(name: str, bits: tuple[int, ...]) -> str:
    return f" {name}:[{','.join(map(str, bits))}]"


@pytest.mark.parametrize("name", PAIRS)
def test_pairs_of_float32(name: str) -> None:
    """Every choice of halves and of signs, on registers that hold different numbers."""
    count = 3 if "fma" in name else 2
    sources = ["v[2:3]", "v[4:5]", "s[6:7]"][:count]
    for select in product((0, 1), repeat=count):
        for select_high, negate in ((select[::-1], (0,) * count), ((1,) * count, select)):
            wave = new_wave()
            words = [[WORDS[(i + 3 * r) % 7] for i in range(64)] for r in range(6)]
            for i in range(4):
                set_vector(wave, 2 + i, words[i])
            for i in range(2):
                words[4 + i] = [WORDS[i]] * 64
                set_scalar(wave, 6 + i, WORDS[i])
            text = f"{name} v[0:1], {', '.join(sources)}{modifiers('op_sel', select)}"
            text += modifiers("op_sel_hi", select_high) + modifiers("neg_lo", negate)
            step(wave, text + modifiers("neg_hi", negate[::-1]))
            for half, chosen, signs in ((0, select, negate), (1, select_high, negate[::-1])):
                for lane in range(64):
                    operands = [
                        words[2 * i + chosen[i]][lane] ^ (MINUS if signs[i] else 0)
                        for i in range(count)
                    ]
                    expected = PAIRS[name](*operands)
                    assert F32.same(vector(wave, half)[lane], expected), (text, half, lane)


def test_pairs_by_default_take_their_own_halves() -> None:
    wave = new_wave()
    for i, word in enumerate((0x3F800000, 0x40000000, 0x40400000, 0x40800000)):
        set_vector(wave, 2 + i, word)
    step(wave, "v_pk_add_f32 v[0:1], v[2:3], v[4:5]")  # 1 + 3, 2 + 4
    assert (vector(wave, 0)[0], vector(wave, 1)[0]) == (0x40800000, 0x40C00000)
    step(wave, "v_pk_mul_f32 v[0:1], v[2:3], 2.0 op_sel_hi:[1,0]")
    assert (vector(wave, 0)[0], vector(wave, 1)[0]) == (0x40000000, 0x40800000)


def test_a_pair_may_be_its_own_source() -> None:
    """Both halves are read before either is written."""
    wave = new_wave()
    set_vector(wave, 2, 0x3F800000)
    set_vector(wave, 3, 0x40000000)
    step(wave, "v_pk_add_f32 v[2:3], v[2:3], v[2:3] op_sel:[1,1] op_sel_hi:[0,0]")
    assert (vector(wave, 2)[0], vector(wave, 3)[0]) == (0x40800000, 0x40000000)


@pytest.mark.parametrize("select", list(product((0, 1), repeat=2)))
def test_move(select: tuple[int, int]) -> None:
    """op_sel[0] names the first source's half for the low result, op_sel[1] the second's."""
    wave = new_wave()
    for i in range(4):
        set_vector(wave, 2 + i, 100 + i)
    step(wave, f"v_pk_mov_b32 v[0:1], v[2:3], v[4:5]{modifiers('op_sel', select)}")
    assert vector(wave, 0)[9] == 100 + select[0] and vector(wave, 1)[9] == 102 + select[1]


HALVES: dict[str, tuple[int, Callable[..., int | None]]] = {
    "v_pk_add_f16": (2, F16.add),
    "v_pk_mul_f16": (2, F16.multiply),
    "v_pk_fma_f16": (3, F16.fma),
    "v_pk_min_f16": (2, lambda a, b: F16.minimum(a, b)),
    "v_pk_max_f16": (2, lambda a, b: F16.minimum(a, b, largest=True)),
    "v_pk_add_u16": (2, lambda a, b: a + b & 0xFFFF),
    "v_pk_add_i16": (2, lambda a, b: a + b & 0xFFFF),
    "v_pk_sub_u16": (2, lambda a, b: a - b & 0xFFFF),
    "v_pk_sub_i16": (2, lambda a, b: a - b & 0xFFFF),
    "v_pk_mul_lo_u16": (2, lambda a, b: a * b & 0xFFFF),
    "v_pk_mad_u16": (3, lambda a, b, c: a * b + c & 0xFFFF),
    "v_pk_mad_i16": (3, lambda a, b, c: a * b + c & 0xFFFF),
    "v_pk_min_u16": (2, min),
    "v_pk_max_u16": (2, max),
    "v_pk_min_i16": (2, lambda a, b: min(signed(a, 16), signed(b, 16)) & 0xFFFF),
    "v_pk_max_i16": (2, lambda a, b: max(signed(a, 16), signed(b, 16)) & 0xFFFF),
    "v_pk_lshlrev_b16": (2, lambda n, a: a << (n & 15) & 0xFFFF),
    "v_pk_lshrrev_b16": (2, lambda n, a: a >> (n & 15)),
    "v_pk_ashrrev_i16": (2, lambda n, a: signed(a, 16) >> (n & 15) & 0xFFFF),
}


def two_halves(name: str, actual: int, expected: list[int | None]) -> bool:
    parts = actual & 0xFFFF, actual >> 16
    if name.endswith("f16"):
        return all(F16.same(a, e) for a, e in zip(parts, expected, strict=True))
    return list(parts) == expected


@pytest.mark.parametrize("name", HALVES)
def test_halves(name: str) -> None:
    count, oracle = HALVES[name]
    edges = (
        F16_EDGES[:12] if name.endswith("f16") else [0, 1, 15, 16, 0x7FFF, 0x8000, 0xFFFF, 0x1234]
    )
    words = [a | b << 16 for a, b in zip(edges, edges[::-1], strict=True)]
    for select in product((0, 1), repeat=count):
        text = f"{name} v0, " + ", ".join(f"v{i + 1}" for i in range(count))
        text += modifiers("op_sel", select) + modifiers("op_sel_hi", select[::-1])
        wave = new_wave()
        rows = list(product(*[words] * count))[: 64 * 8]
        for start in range(0, len(rows), 64):
            part = rows[start : start + 64]
            for i in range(count):
                set_vector(wave, 1 + i, [row[i] for row in part])
            step(wave, text)
            for row, actual in zip(part, vector(wave, 0), strict=False):
                expected = [
                    oracle(*(w >> 16 * h & 0xFFFF for w, h in zip(row, halves, strict=True)))
                    for halves in (select, select[::-1])
                ]
                assert two_halves(name, actual, expected), (
                    text,
                    [hex(x) for x in row],
                    hex(actual),
                )


def test_halves_negated_and_constant() -> None:
    words = [0x3C004000, 0x8000BC00, 0x7BFF0001]
    check_lanes(
        "v_pk_add_f16 v0, v1, v2 neg_lo:[1,0] neg_hi:[0,1]",
        lambda a, b: (
            (F16.add((a ^ 0x8000) & 0xFFFF, b & 0xFFFF) or 0)
            | (F16.add(a >> 16, b >> 16 ^ 0x8000) or 0) << 16
        ),
        [words, words],
    )
    check_lanes(
        "v_pk_mul_f16 v0, v1, 2.0 op_sel_hi:[1,0]",
        lambda a: (
            (F16.multiply(a & 0xFFFF, 0x4000) or 0) | (F16.multiply(a >> 16, 0x4000) or 0) << 16
        ),
        [words],
    )
    check_lanes(
        "v_pk_add_u16 v0, v1, -1",
        lambda a: (a - 1 & 0xFFFF) | ((a >> 16) - 1 & 0xFFFF) << 16,
        [words],
    )
    check_lanes("v_pk_add_u16 v0, v1, 3", lambda a: a & ~0xFFFF | a + 3 & 0xFFFF, [words])


def mixed(word: int, small: int, half: int) -> int | None:
    """A source of V_FMA_MIX as a float32 pattern; None for NaN."""
    if not small:
        return word
    bits = word >> 16 * half & 0xFFFF
    if F16.is_nan(bits):
        return None
    if F16.is_infinite(bits):
        return F32.signed(F16.sign(bits), F32.infinity)
    return F32.round(F16.value(bits), bool(F16.sign(bits)))


@pytest.mark.parametrize("small", list(product((0, 1), repeat=3)))
def test_mixed_precision(small: tuple[int, int, int]) -> None:
    words = [0x3C004000, 0xBF800000, 0x00010002, 0x7C003555, 0x42280000]
    for half in product((0, 1), repeat=3):
        tail = modifiers("op_sel", half) + modifiers("op_sel_hi", small)

        def oracle(*sources: int, half: tuple[int, ...] = half) -> int | None:
            values = [mixed(*each) for each in zip(sources, small, half, strict=True)]
            if None in values:
                return None
            a, b, c = (value for value in values if value is not None)
            return F32.fma(a ^ MINUS, b, c & ~MINUS)

        check_lanes(f"v_fma_mix_f32 v0, -v1, v2, |v3|{tail}", oracle, [words] * 3, same=F32.same)


def test_mixed_results_of_16_bits() -> None:
    """The other half of the destination is kept."""

    def half_of(a: int, b: int) -> int:
        exact = F32.value(F32.fma(a, b, 0x3F800000) or 0)
        return F16.round(exact)

    numbers = [0x3F800000, 0x3F801000, 0x40490FDB, 0x3F802000, 0x3FFFFFFF]

    def prepare(wave: object) -> None:
        set_vector(wave, 0, 0xBEEF1234)  # type: ignore[arg-type]  # the checker's wave

    low = "v_fma_mixlo_f16 v0, v1, v2, 1.0"
    high = "v_fma_mixhi_f16 v0, v1, v2, 1.0"
    check_lanes(low, lambda a, b: 0xBEEF0000 | half_of(a, b), [numbers] * 2, prepare=prepare)
    check_lanes(high, lambda a, b: half_of(a, b) << 16 | 0x1234, [numbers] * 2, prepare=prepare)
    check_lanes(
        "v_fma_mix_f32 v0, v1, s2, neg(0) op_sel_hi:[1,0,0]",
        lambda a: F32.fma(mixed(a, 1, 0) or 0, 0x3FB8AA3B, MINUS),
        [[0x3C00, 0xBC00, 0x0000, 0x8000]],
        prepare=lambda wave: set_scalar(wave, 2, 0x3FB8AA3B),
    )


def test_edges_are_edges() -> None:
    assert set(WORDS) & set(F32_EDGES)


def test_refusals() -> None:
    refused("v_pk_add_f32 v[0:1], v2, v[4:5]", "not a pair")
    refused("v_pk_add_f32 v0, v[2:3], v[4:5]", "destination 'v0'")
    refused("v_pk_mul_f32 v[0:1], v[2:3], 2.0", "upper half of the constant")
    refused("v_pk_add_f32 v[0:1], -v[2:3], v[4:5]", "of a packed instruction")
    refused("v_pk_add_f32 v[0:1], v[2:3], v[4:5] clamp", "modifier clamp")
    refused("v_pk_add_f16 v0, v1, v[2:3]", "of a packed instruction")
    refused("v_pk_mul_f16 v0, v1, 2.0", "upper half of the constant")
    refused("v_pk_add_u16 v0, v1, v2 clamp", "modifier clamp")
    refused("v_pk_fma_f32 v[0:1], v[2:3], v[4:5]", "2 operands|3 operands")
    refused("v_fma_mix_f32 v0, v1, 1.0, v2 op_sel_hi:[0,1,0]", "as float16")
    refused("v_fma_mix_f32 v0, v[2:3], v1, v2", "of a mixed instruction")
    refused("v_bitop3_b32 v0, v1, v2, v3 bitop3:0x96", "not on gfx942")
