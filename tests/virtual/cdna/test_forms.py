"""Input and output modifiers, SDWA and DPP, lane by lane and byte by byte as the ISA has them."""

from collections.abc import Callable
from fractions import Fraction

import pytest

from tests.virtual.cdna.ieee import F16, F16_EDGES, F32, F32_EDGES, Format
from tests.virtual.cdna.single import (
    M32,
    batches,
    check_lanes,
    lanes,
    new_wave,
    refused,
    set_exec,
    set_scalar,
    set_vcc,
    set_vector,
    signed,
    step,
    vector,
)

MINUS = 0x80000000
WORDS = [0x00000000, 0xFFFFFFFF, 0x8899AABB, 0x7F80FF01, 0x00FF8000, 0x12345678]
SELECTORS: dict[str, tuple[int, int]] = {
    **{f"BYTE_{i}": (8 * i, 8) for i in range(4)},
    "WORD_0": (0, 16),
    "WORD_1": (16, 16),
    "DWORD": (0, 32),
}
"""Of each selector: the lowest bit and the width."""


def field(word: int, selector: str) -> int:
    shift, width = SELECTORS[selector]
    return word >> shift & (1 << width) - 1


@pytest.mark.parametrize("first", SELECTORS)
@pytest.mark.parametrize("second", SELECTORS)
def test_sdwa_sources(first: str, second: str) -> None:
    tail = f"dst_sel:DWORD dst_unused:UNUSED_PAD src0_sel:{first} src1_sel:{second}"
    check_lanes(
        f"v_add_u32_sdwa v0, v1, v2 {tail}",
        lambda a, b: field(a, first) + field(b, second) & M32,
        [WORDS, WORDS],
    )
    check_lanes(
        f"v_sub_u32_sdwa v0, sext(v1), v2 {tail}",
        lambda a, b: signed(field(a, first), SELECTORS[first][1]) - field(b, second) & M32,
        [WORDS, WORDS],
    )
    check_lanes(
        f"v_max_i16_sdwa v0, sext(v1), sext(v2) {tail}",
        lambda a, b: (
            max(
                signed(signed(field(x, s), SELECTORS[s][1]), 16)
                for x, s in ((a, first), (b, second))
            )
            & 0xFFFF
        ),
        [WORDS, WORDS],
    )


@pytest.mark.parametrize("unused", ["UNUSED_PAD", "UNUSED_SEXT", "UNUSED_PRESERVE"])
@pytest.mark.parametrize("target", SELECTORS)
def test_sdwa_destination(target: str, unused: str) -> None:
    shift, width = SELECTORS[target]
    old = 0xC3D2E1F0

    def oracle(a: int, b: int) -> int:
        result = (a | b) & (1 << width) - 1
        if unused == "UNUSED_PRESERVE":
            return old & ~((1 << width) - 1 << shift) | result << shift
        if unused == "UNUSED_SEXT":
            return signed(result, width) << shift & M32
        return result << shift

    for rows in batches([WORDS, WORDS]):
        wave = new_wave()
        set_vector(wave, 0, old)
        for i in range(2):
            set_vector(wave, 1 + i, [row[i] for row in rows])
        step(wave, f"v_or_b32_sdwa v0, v1, v2 dst_sel:{target} dst_unused:{unused}")
        assert vector(wave, 0) == [oracle(*row) for row in rows]


def test_sdwa_of_half_floats_and_comparisons() -> None:
    half = [x << 16 | 0x1234 for x in F16_EDGES]
    check_lanes(
        "v_add_f16_sdwa v0, -v1, |v2| dst_sel:DWORD dst_unused:UNUSED_PAD src0_sel:WORD_1 "
        "src1_sel:WORD_1",
        lambda a, b: F16.add(a >> 16 ^ 0x8000, b >> 16 & 0x7FFF),
        [half, half],
        same=F16.same,
    )
    wave = new_wave()
    set_vector(wave, 1, 0x80FF7F00)
    set_vector(wave, 2, 0x000000FF)
    step(wave, "v_cmp_eq_u32_sdwa vcc, v1, v2 src0_sel:BYTE_2 src1_sel:DWORD")
    assert wave.vcc == (1 << 64) - 1
    step(wave, "v_cmp_eq_u32_sdwa s[4:5], v1, sext(v2) src0_sel:BYTE_2 src1_sel:BYTE_0")
    assert wave.read_scalars(512 + 4, 2) == 0


def test_sdwa_refusals() -> None:
    refused("v_add_u32_sdwa v0, v1, v2 dst_sel:BYTE_4", "selector BYTE_4")
    refused("v_add_u32_sdwa v0, v1, v2 dst_unused:UNUSED_X", "dst_unused:UNUSED_X")
    refused("v_add_u32_e64 v0, sext(v1), v2", "sext")
    refused("v_add_u32_dpp v0, sext(v1), v2 quad_perm:[0,1,2,3]", "sext")


def quad(*chosen: int) -> Callable[[int], int | None]:
    return lambda i: i // 4 * 4 + chosen[i % 4]


def shifted(by: int) -> Callable[[int], int | None]:
    """From the lane `by` further on in the row of 16."""
    return lambda i: i + by if 0 <= i % 16 + by < 16 else None


PATTERNS: dict[str, Callable[[int], int | None]] = {
    "quad_perm:[0,1,2,3]": lambda i: i,
    "quad_perm:[3,2,1,0]": quad(3, 2, 1, 0),
    "quad_perm:[1,0,3,2]": quad(1, 0, 3, 2),
    "quad_perm:[2,2,0,1]": quad(2, 2, 0, 1),
    "row_shl:1": shifted(1),
    "row_shl:15": shifted(15),
    "row_shr:1": shifted(-1),
    "row_shr:8": shifted(-8),
    "row_ror:1": lambda i: i // 16 * 16 + (i - 1) % 16,
    "row_ror:12": lambda i: i // 16 * 16 + (i - 12) % 16,
    "row_mirror": lambda i: i // 16 * 16 + 15 - i % 16,
    "row_half_mirror": lambda i: i // 8 * 8 + 7 - i % 8,
    "row_bcast:15": lambda i: i // 16 * 16 - 1 if i > 15 else None,
    "row_bcast:31": lambda i: 31 if i > 31 else None,
    "row_newbcast:5": lambda i: i // 16 * 16 + 5,
    "wave_shl:1": lambda i: i + 1 if i < 63 else None,
    "wave_shr:1": lambda i: i - 1 if i > 0 else None,
    "wave_rol:1": lambda i: (i + 1) % 64,
    "wave_ror:1": lambda i: (i - 1) % 64,
}
"""Of each pattern: the lane that lane i reads, None outside."""

ALL = (1 << 64) - 1
SOME = 0xF0F3_8001_FFFF_0A5F


def moved(wave_exec: int, pattern: str, tail: str, rows: int, banks: int) -> None:
    """v_mov_b32_dpp on distinct values, the destination holding others."""
    wave = new_wave()
    set_vector(wave, 1, [1000 + i for i in range(64)])
    set_vector(wave, 0, [i for i in range(64)])
    set_exec(wave, wave_exec)
    step(wave, f"v_mov_b32_dpp v0, v1 {pattern} {tail}")
    for i, actual in enumerate(vector(wave, 0)):
        enabled = wave_exec >> i & 1 and rows >> i // 16 & 1 and banks >> i % 16 // 4 & 1
        source = PATTERNS[pattern](i)
        valid = source is not None and wave_exec >> source & 1
        if not enabled or not valid and "bound_ctrl" not in tail:
            expected = i
        else:
            expected = 1000 + source if valid and source is not None else 0
        assert actual == expected, f"{pattern} {tail}: lane {i} came {actual}, not {expected}"


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("mask", [ALL, SOME])
def test_dpp(pattern: str, mask: int) -> None:
    for rows, banks in ((0xF, 0xF), (0xA, 0xF), (0xF, 0x3), (0x5, 0xE)):
        for bound in ("", " bound_ctrl:1"):
            moved(mask, pattern, f"row_mask:{rows:#x} bank_mask:{banks:#x}{bound}", rows, banks)


def test_dpp_moves_only_the_first_source() -> None:
    wave = new_wave()
    set_vector(wave, 1, [1000 * i for i in range(64)])
    set_vector(wave, 2, [i for i in range(64)])
    step(wave, "v_add_u32_dpp v0, v1, v2 row_shr:1 row_mask:0xf bank_mask:0xf bound_ctrl:1")
    assert vector(wave, 0) == [(1000 * (i - 1) if i % 16 else 0) + i for i in range(64)]


def test_dpp_refusals() -> None:
    refused("v_mov_b32_dpp v0, v1 row_share:3", "DPP pattern")
    refused("v_mov_b32_dpp v0, v1 row_bcast:7", "row_bcast:7")
    refused("v_mov_b32_dpp v0, v1 wave_shl:2", "wave_shl:2")
    refused("v_mov_b64_dpp v[0:1], v[2:3] row_newbcast:3", "64-bit")


@pytest.mark.parametrize("mask", [0, 1, SOME, ALL])
@pytest.mark.parametrize("name", ["vcc", "s[6:7]"])
def test_selection(name: str, mask: int) -> None:
    """The second source where the mask has a 1, the first where it has a 0."""
    wave = new_wave()
    set_vector(wave, 1, [0x3F800000 + i for i in range(64)])
    set_vector(wave, 2, [0xC0000000 + i for i in range(64)])
    set_vcc(wave, mask)
    set_scalar(wave, 6, mask, 2)
    step(wave, f"v_cndmask_b32_e64 v0, -v1, |v2|, {name}")
    first, second = 0xBF800000, 0x40000000
    expected = [(second if mask >> i & 1 else first) + i for i in range(64)]
    assert vector(wave, 0) == expected


@pytest.mark.parametrize("mask", [0, 1, SOME, ALL])
def test_exec_masks_results(mask: int) -> None:
    wave = new_wave()
    set_vector(wave, 0, 7)
    set_vector(wave, 1, [100 + i for i in range(64)])
    set_exec(wave, mask)
    step(wave, "v_add_u32_e32 v0, v1, v1")
    assert vector(wave, 0) == [200 + 2 * i if mask >> i & 1 else 7 for i in range(64)]
    set_exec(wave, mask)
    step(wave, "v_cmp_gt_u32_e64 s[2:3], v1, 131")
    found = wave.read_scalars(512 + 2, 2)
    assert lanes(found) == [i for i in range(64) if mask >> i & 1 and 100 + i > 131]


@pytest.mark.parametrize(
    ("operand", "change"),
    [
        ("-v1", lambda a: a ^ MINUS),
        ("|v1|", lambda a: a & ~MINUS),
        ("-|v1|", lambda a: a | MINUS),
        ("neg(v1)", lambda a: a ^ MINUS),
        ("abs(v1)", lambda a: a & ~MINUS),
    ],
)
def test_input_modifiers(operand: str, change: Callable[[int], int]) -> None:
    check_lanes(
        f"v_add_f32_e64 v0, {operand}, v2",
        lambda a, b: F32.add(change(a), b),
        [F32_EDGES] * 2,
        same=F32.same,
    )
    check_lanes(f"v_mov_b32_e64 v0, {operand}", change, [F32_EDGES])
    refused(f"v_add_u32_e64 v0, {operand}, v2", "an integer is meant")


def test_half_input_modifiers_and_constants() -> None:
    check_lanes(
        "v_add_f16_e64 v0, -|v1|, 1.0",
        lambda a: F16.add(a & 0xFFFF | 0x8000, 0x3C00),
        [F16_EDGES + [0xABCD3C01]],
        same=F16.same,
    )
    check_lanes(
        "v_mul_f16_e64 v0, v1, 0.15915494",
        lambda a: F16.multiply(a, 0x3118),
        [F16_EDGES],
        same=F16.same,
    )
    check_lanes(
        "v_pack_b32_f16 v0, -v1, v2 op_sel:[0,1,0]",
        lambda a, b: (a ^ 0x8000) & 0xFFFF | b >> 16 << 16,
        [[0x12343C01, 0xABCD8001], [0x56781234, 0xFFFF0000]],
    )


def test_clamp() -> None:
    def clamped(form: Format, result: int | None) -> int:
        if result is None or form.is_nan(result) or form.sign(result):
            return 0
        return min(result, form.round(Fraction(1)))

    check_lanes(
        "v_add_f32_e64 v0, v1, v2 clamp", lambda a, b: clamped(F32, F32.add(a, b)), [F32_EDGES] * 2
    )
    check_lanes(
        "v_mul_f16_e64 v0, v1, v2 clamp",
        lambda a, b: clamped(F16, F16.multiply(a, b)),
        [F16_EDGES] * 2,
    )


@pytest.mark.parametrize("modifier", ["mul:2", "mul:4", "div:2"])
def test_output_modifiers_are_refused(modifier: str) -> None:
    """The hardware ignores them while denormals are kept."""
    refused(f"v_add_f32_e64 v0, v1, v2 {modifier}", "denormals")


def test_batches_cover_every_combination() -> None:
    """The checker itself: all rows are in some batch, and batches are full."""
    parts = list(batches([[1, 2, 3], list(range(50))]))
    assert {row for part in parts for row in part} == {(a, b) for a in (1, 2, 3) for b in range(50)}
    assert all(len(part) == 64 for part in parts)
