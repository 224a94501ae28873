"""Scalar instructions and their SCC, against the ISA documents' definitions in Python integers."""

from collections.abc import Callable
from itertools import product

import pytest

from glm_portable.virtual.cdna.operands import EXEC
from glm_portable.virtual.cdna.state import Wave
from tests.virtual.cdna.single import M32, new_wave, refused, scalar, set_scalar, signed, step

M64 = (1 << 64) - 1
EDGES = [0, 1, 2, 5, 31, 32, 33, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0x80000001, M32, 0xA5C3F00F]
WIDE = [0, 1, 63, 64, 0x7FFFFFFF, M32, 1 << 32, 1 << 63, (1 << 63) - 1, M64, 0x123456789ABCDEF0]
Oracle = Callable[..., tuple[int, int | None]]
"""Of the sources: the result, and SCC (None: unchanged)."""


def s32(x: int) -> int:
    return signed(x, 32)


def nonzero(value: int, width: int = 32) -> tuple[int, int]:
    value &= (1 << width) - 1
    return value, int(value != 0)


def carried(total: int) -> tuple[int, int]:
    return total & M32, int(total > M32)


def overflowed(total: int) -> tuple[int, int]:
    return total & M32, int(not -(1 << 31) <= total < 1 << 31)


def unchanged(value: int, width: int = 32) -> tuple[int, None]:
    return value & (1 << width) - 1, None


def field(a: int, b: int, width: int, is_signed: bool) -> tuple[int, int]:
    """S_BFE: shifted arithmetically if signed; the field's highest bit is then the sign."""
    offset, count = b & width - 1, b >> 16 & 0x7F
    value = (signed(a, width) if is_signed else a) >> offset & (1 << count) - 1
    return nonzero(signed(value, count) if is_signed and count else value, width)


TWO: dict[str, Oracle] = {
    "s_add_u32": lambda a, b: carried(a + b),
    "s_sub_u32": lambda a, b: (a - b & M32, int(b > a)),
    "s_add_i32": lambda a, b: overflowed(s32(a) + s32(b)),
    "s_sub_i32": lambda a, b: overflowed(s32(a) - s32(b)),
    "s_mul_i32": lambda a, b: unchanged(a * b),
    "s_mul_hi_u32": lambda a, b: unchanged(a * b >> 32),
    "s_mul_hi_i32": lambda a, b: unchanged(s32(a) * s32(b) >> 32),
    "s_min_i32": lambda a, b: (min(s32(a), s32(b)) & M32, int(s32(a) < s32(b))),
    "s_max_i32": lambda a, b: (max(s32(a), s32(b)) & M32, int(s32(a) >= s32(b))),
    "s_min_u32": lambda a, b: (min(a, b), int(a < b)),
    "s_max_u32": lambda a, b: (max(a, b), int(a >= b)),
    "s_and_b32": lambda a, b: nonzero(a & b),
    "s_or_b32": lambda a, b: nonzero(a | b),
    "s_xor_b32": lambda a, b: nonzero(a ^ b),
    "s_andn2_b32": lambda a, b: nonzero(a & ~b),
    "s_orn2_b32": lambda a, b: nonzero(a | ~b),
    "s_nand_b32": lambda a, b: nonzero(~(a & b)),
    "s_nor_b32": lambda a, b: nonzero(~(a | b)),
    "s_xnor_b32": lambda a, b: nonzero(~(a ^ b)),
    "s_lshl_b32": lambda a, n: nonzero(a << (n & 31)),
    "s_lshr_b32": lambda a, n: nonzero(a >> (n & 31)),
    "s_ashr_i32": lambda a, n: nonzero(s32(a) >> (n & 31)),
    "s_bfm_b32": lambda a, b: unchanged((1 << (a & 31)) - 1 << (b & 31)),
    "s_absdiff_i32": lambda a, b: nonzero(abs(s32(a - b))),
    "s_lshl1_add_u32": lambda a, b: carried((a << 1) + b),
    "s_lshl2_add_u32": lambda a, b: carried((a << 2) + b),
    "s_lshl3_add_u32": lambda a, b: carried((a << 3) + b),
    "s_lshl4_add_u32": lambda a, b: carried((a << 4) + b),
    "s_pack_ll_b32_b16": lambda a, b: unchanged(a & 0xFFFF | (b & 0xFFFF) << 16),
    "s_pack_lh_b32_b16": lambda a, b: unchanged(a & 0xFFFF | b >> 16 << 16),
    "s_pack_hh_b32_b16": lambda a, b: unchanged(a >> 16 | b >> 16 << 16),
}
TWO_64: dict[str, Oracle] = {
    "s_and_b64": lambda a, b: nonzero(a & b, 64),
    "s_or_b64": lambda a, b: nonzero(a | b, 64),
    "s_xor_b64": lambda a, b: nonzero(a ^ b, 64),
    "s_andn2_b64": lambda a, b: nonzero(a & ~b, 64),
    "s_orn2_b64": lambda a, b: nonzero(a | ~b, 64),
    "s_nand_b64": lambda a, b: nonzero(~(a & b), 64),
    "s_nor_b64": lambda a, b: nonzero(~(a | b), 64),
    "s_xnor_b64": lambda a, b: nonzero(~(a ^ b), 64),
}
SHIFT_64: dict[str, Oracle] = {
    "s_lshl_b64": lambda a, n: nonzero(a << (n & 63), 64),
    "s_lshr_b64": lambda a, n: nonzero(a >> (n & 63), 64),
    "s_ashr_i64": lambda a, n: nonzero(signed(a, 64) >> (n & 63), 64),
}


def first(bits: range, a: int, wanted: Callable[[int], bool]) -> int:
    return next((i for i, bit in enumerate(bits) if wanted(a >> bit & 1)), -1)


def alike(a: int, width: int) -> int:
    top = a >> (width - 1)
    return next((i for i in range(1, width) if a >> (width - 1 - i) & 1 != top), -1)


ONE: dict[str, Oracle] = {
    "s_mov_b32": lambda a: unchanged(a),
    "s_not_b32": lambda a: nonzero(~a),
    "s_abs_i32": lambda a: nonzero(abs(s32(a))),
    "s_brev_b32": lambda a: unchanged(sum((a >> i & 1) << (31 - i) for i in range(32))),
    "s_bcnt1_i32_b32": lambda a: nonzero(a.bit_count()),
    "s_ff1_i32_b32": lambda a: unchanged(first(range(32), a, lambda x: x == 1)),
    "s_ff0_i32_b32": lambda a: unchanged(first(range(32), a, lambda x: x == 0)),
    "s_flbit_i32_b32": lambda a: unchanged(first(range(32)[::-1], a, lambda x: x == 1)),
    "s_flbit_i32": lambda a: unchanged(alike(a, 32)),
    "s_sext_i32_i8": lambda a: unchanged(signed(a, 8)),
    "s_sext_i32_i16": lambda a: unchanged(signed(a, 16)),
}
ONE_64: dict[str, tuple[int, Oracle]] = {
    "s_mov_b64": (64, lambda a: unchanged(a, 64)),
    "s_not_b64": (64, lambda a: nonzero(~a, 64)),
    "s_bcnt1_i32_b64": (32, lambda a: nonzero(a.bit_count())),
    "s_ff1_i32_b64": (32, lambda a: unchanged(first(range(64), a, lambda x: x == 1))),
    "s_flbit_i32_b64": (32, lambda a: unchanged(first(range(64)[::-1], a, lambda x: x == 1))),
    "s_flbit_i32_i64": (32, lambda a: unchanged(alike(a, 64))),
}
"""The result's width, and the oracle."""


def operand(register: int, width: int) -> str:
    return f"s{register}" if width == 32 else f"s[{register}:{register + 1}]"


def check(name: str, oracle: Oracle, sources: list[tuple[int, list[int]]], width: int) -> None:
    """sources: the width and the values of each; from s4 on, the result in s2."""
    names = [operand(4 + 2 * i, w) for i, (w, _) in enumerate(sources)]
    for values in product(*(v for _, v in sources)):
        for before in (0, 1):
            wave = new_wave()
            for i, value in enumerate(values):
                set_scalar(wave, 4 + 2 * i, value, sources[i][0] // 32)
            wave.scc, wave.scc_undefined = before, False
            step(wave, f"{name} {operand(2, width)}, " + ", ".join(names))
            result, scc = oracle(*values)
            actual = scalar(wave, 2, width // 32)
            where = f"{name} of {[hex(v) for v in values]}"
            assert actual == result, f"{where} came {actual:#x}, not {result:#x}"
            assert wave.scc == (before if scc is None else scc), f"{where}: SCC {wave.scc}"
            assert not wave.scc_undefined


@pytest.mark.parametrize("name", TWO)
def test_two_sources(name: str) -> None:
    check(name, TWO[name], [(32, EDGES), (32, EDGES)], 32)


@pytest.mark.parametrize("name", TWO_64)
def test_two_sources_of_64_bits(name: str) -> None:
    check(name, TWO_64[name], [(64, WIDE), (64, WIDE)], 64)


@pytest.mark.parametrize("name", SHIFT_64)
def test_shifts_of_64_bits(name: str) -> None:
    check(name, SHIFT_64[name], [(64, WIDE), (32, [0, 1, 31, 32, 33, 63, 64, 65, M32])], 64)


@pytest.mark.parametrize("name", ONE)
def test_one_source(name: str) -> None:
    check(name, ONE[name], [(32, [*EDGES, 0x80, 0x7F, 0x8000, 0xFFFFFFFE, 0x40000000])], 32)


@pytest.mark.parametrize("name", ONE_64)
def test_one_source_of_64_bits(name: str) -> None:
    width, oracle = ONE_64[name]
    check(name, oracle, [(64, [*WIDE, 1 << 31, M64 - 1, 3 << 40])], width)


@pytest.mark.parametrize("width", [32, 64])
@pytest.mark.parametrize("kind", "ui")
def test_bit_fields(kind: str, width: int) -> None:
    offsets = [0, 1, 8, 16, 31, 32, 63]
    selections = [o | n << 16 for o in offsets for n in (0, 1, 8, 16, 20, 31, 32, 40, 63, 64, 127)]
    values = EDGES[4:] if width == 32 else WIDE
    name = f"s_bfe_{kind}{width}"
    check(
        name,
        lambda a, b: field(a, b, width, kind == "i"),
        [(width, values), (32, selections)],
        width,
    )


def test_masks_of_64_bits() -> None:
    counts = [0, 1, 31, 32, 63, 64, 65]
    oracle: Oracle = lambda a, b: unchanged((1 << (a & 63)) - 1 << (b & 63), 64)  # noqa: E731
    check("s_bfm_b64", oracle, [(32, counts), (32, counts)], 64)


@pytest.mark.parametrize("scc", [0, 1])
def test_carry_chains_and_selection(scc: int) -> None:
    cases: dict[str, Oracle] = {
        "s_addc_u32": lambda a, b: carried(a + b + scc),
        "s_subb_u32": lambda a, b: (a - b - scc & M32, int(b + scc > a)),
        "s_cselect_b32": lambda a, b: unchanged(a if scc else b),
    }
    for name, oracle in cases.items():
        for a, b in product(EDGES, EDGES):
            wave = new_wave()
            set_scalar(wave, 4, a)
            set_scalar(wave, 6, b)
            wave.scc, wave.scc_undefined = scc, False
            step(wave, f"{name} s2, s4, s6")
            result, after = oracle(a, b)
            assert (scalar(wave, 2), wave.scc) == (result, scc if after is None else after), name
    wave = new_wave()
    set_scalar(wave, 4, WIDE[-1], 2)
    wave.scc, wave.scc_undefined = scc, False
    step(wave, "s_cselect_b64 s[2:3], s[4:5], -1")
    assert scalar(wave, 2, 2) == (WIDE[-1] if scc else M64)


@pytest.mark.parametrize("value", [0, 1, 0x7FFFFFFF, 0x80000000, M32])
@pytest.mark.parametrize("immediate", [0, 1, 0x7FFF, 0x8000, 0xFFFF])
def test_immediates_of_16_bits(value: int, immediate: int) -> None:
    extended = signed(immediate, 16)

    def run(text: str) -> Wave:
        wave = new_wave()
        set_scalar(wave, 2, value)
        wave.scc, wave.scc_undefined = 0, False
        step(wave, text)
        return wave

    assert scalar(run(f"s_movk_i32 s2, {immediate:#x}"), 2) == extended & M32
    wave = run(f"s_addk_i32 s2, {immediate:#x}")
    assert (scalar(wave, 2), wave.scc) == overflowed(s32(value) + extended)
    wave = run(f"s_mulk_i32 s2, {immediate:#x}")
    assert (scalar(wave, 2), wave.scc) == (value * extended & M32, 0)
    for name, compare in COMPARE.items():
        assert run(f"s_cmpk_{name}_i32 s2, {immediate:#x}").scc == compare(s32(value), extended)
        assert run(f"s_cmpk_{name}_u32 s2, {immediate:#x}").scc == compare(value, immediate)


COMPARE: dict[str, Callable[[int, int], bool]] = {
    "lt": lambda a, b: a < b,
    "le": lambda a, b: a <= b,
    "gt": lambda a, b: a > b,
    "ge": lambda a, b: a >= b,
    "eq": lambda a, b: a == b,
    "lg": lambda a, b: a != b,
}


@pytest.mark.parametrize("name", COMPARE)
def test_comparisons(name: str) -> None:
    for a, b in product(EDGES, EDGES):
        wave = new_wave()
        set_scalar(wave, 2, a)
        set_scalar(wave, 3, b)
        step(wave, f"s_cmp_{name}_u32 s2, s3")
        assert wave.scc == COMPARE[name](a, b)
        step(wave, f"s_cmp_{name}_i32 s2, s3")
        assert wave.scc == COMPARE[name](s32(a), s32(b))
        if name in ("eq", "lg"):
            set_scalar(wave, 4, a << 32 | 5, 2)
            set_scalar(wave, 6, b << 32 | 5, 2)
            step(wave, f"s_cmp_{name}_u64 s[4:5], s[6:7]")
            assert wave.scc == COMPARE[name](a, b)


@pytest.mark.parametrize("bit", [0, 1, 30, 31, 32, 33, 63, 64])
def test_single_bits(bit: int) -> None:
    word, wide = 0x9C3A5F01, 0x8123456789ABCDEF
    for wanted in (0, 1):
        wave = new_wave()
        set_scalar(wave, 2, word)
        set_scalar(wave, 4, wide, 2)
        set_scalar(wave, 6, bit)
        step(wave, f"s_bitcmp{wanted}_b32 s2, s6")
        assert wave.scc == (word >> bit % 32 & 1 == wanted)
        step(wave, f"s_bitcmp{wanted}_b64 s[4:5], s6")
        assert wave.scc == (wide >> bit % 64 & 1 == wanted)
        step(wave, f"s_bitset{wanted}_b32 s2, s6")
        one = 1 << bit % 32
        assert scalar(wave, 2) == (word | one if wanted else word & ~one)
        step(wave, f"s_bitset{wanted}_b64 s[4:5], s6")
        one = 1 << bit % 64
        assert scalar(wave, 4, 2) == (wide | one if wanted else wide & ~one)


SAVEEXEC: dict[str, Callable[[int, int], int]] = {
    "and": lambda s, e: s & e,
    "or": lambda s, e: s | e,
    "xor": lambda s, e: s ^ e,
    "andn2": lambda s, e: s & ~e,
    "orn2": lambda s, e: s | ~e,
    "andn1": lambda s, e: ~s & e,
    "orn1": lambda s, e: ~s | e,
    "nand": lambda s, e: ~(s & e),
    "nor": lambda s, e: ~(s | e),
    "xnor": lambda s, e: ~(s ^ e),
}


@pytest.mark.parametrize("name", SAVEEXEC)
@pytest.mark.parametrize("source", [0, M64, 0x0123456789ABCDEF])
@pytest.mark.parametrize("before", [0, M64, 0xFF00FF00F0F0A5A5])
def test_save_exec(name: str, source: int, before: int) -> None:
    wave = new_wave()
    wave.write_scalars(EXEC, 2, before)
    set_scalar(wave, 4, source, 2)
    step(wave, f"s_{name}_saveexec_b64 s[2:3], s[4:5]")
    after = SAVEEXEC[name](source, before) & M64
    assert (wave.exec, scalar(wave, 2, 2), wave.scc) == (after, before, int(after != 0))
    assert [bool(x) for x in wave.lanes] == [bool(after >> i & 1) for i in range(64)]


def test_constants() -> None:
    """Inline constants are extended to 64 bits; a literal by zeros."""
    wave = new_wave()
    for text, value in (("-1", M64), ("-16", M64 - 15), ("64", 64), ("0xffff0000", 0xFFFF0000)):
        step(wave, f"s_mov_b64 s[2:3], {text}")
        assert scalar(wave, 2, 2) == value
    step(wave, "s_mov_b32 s2, 1.0")
    assert scalar(wave, 2) == 0x3F800000
    step(wave, "s_mov_b32 s2, 0.15915494")
    assert scalar(wave, 2) == 0x3E22F983
    step(wave, "s_mov_b64 s[2:3], -4.0")
    assert scalar(wave, 2, 2) == 0xC010000000000000


def test_operands_of_the_wrong_width_are_refused() -> None:
    refused("s_mov_b64 s2, s[4:5]", "destination 's2'")
    refused("s_mov_b64 s[2:3], s4", "for 64 bits")
    refused("s_add_u32 s2, s[4:5], s6", "for 32 bits")
    refused("s_add_u32 v2, s4, s6", "destination 'v2'")
    refused("s_add_u32 s2, v4, s6", "not a 32-bit constant")
    refused("s_add_u32 s2, -s4, s6", "scalar instruction")
    refused("s_add_u32 s2, s4", "2 operands")
    refused("s_and_saveexec_b64 s2, s[4:5]", "destination")
    refused("s_wqm_saveexec_b64 s[2:3], s[4:5]", "not implemented")
