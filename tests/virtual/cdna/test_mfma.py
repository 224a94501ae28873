"""Matrix instructions: every shape of both chips, element by element.

The layouts are written here as closed formulas of lane and register, apart from the simulator's:
A's row m and B's column n are lane % M; the lane's group holds K / groups consecutive k; D's row of
result register v and lane l of a 32 x 32 tile is 8 (v / 4) + 4 (l / 32) + v % 4, of a 16 x 16 tile
4 (l / 16) + v (AMD matrix instruction calculator, for CDNA3; CDNA4's shapes follow the same rule).
"""

import random
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from itertools import product

import numpy as np
import pytest

from glm_portable.virtual.cdna.state import Wave
from tests.virtual.cdna.ieee import BF16, F16, F32, Format
from tests.virtual.cdna.single import new_wave, refused, set_exec, set_vector, step, vector
from tests.virtual.cdna.test_conversions import FORMATS, INSTRUCTIONS

C_REGISTER, D_REGISTER = 64, 96
A_REGISTER, B_REGISTER = 0, 32


@dataclass(frozen=True)
class Shape:
    """An instruction on an M x M tile. kinds: of A and B."""

    arch: str
    name: str
    m: int
    k: int
    kinds: tuple[str, str]
    tail: str = ""

    @property
    def bits(self) -> int:
        return {"f32": 32, "f16": 16, "bf16": 16}.get(self.kinds[0], 8)

    @property
    def per_lane(self) -> int:
        return self.k * self.m // 64

    @property
    def packed(self) -> int:
        """Registers of A, and of B."""
        return self.per_lane * self.bits // 32

    @property
    def results(self) -> int:
        return self.m * self.m // 64

    def place(self, row: int, k: int) -> tuple[int, int]:
        """Lane and index in it of A[row, k], or of B[k, row]."""
        return row + self.m * (k // self.per_lane), k % self.per_lane

    def element(self, register: int, lane: int) -> tuple[int, int]:
        """Row and column of D in this result register and lane."""
        if self.m == 32:
            return 8 * (register // 4) + 4 * (lane // 32) + register % 4, lane % 32
        return 4 * (lane // 16) + register, lane % 16

    def text(self, c: str) -> str:
        d = f"v[{D_REGISTER}:{D_REGISTER + self.results - 1}]"
        a, b = (span(first, self.packed) for first in (A_REGISTER, B_REGISTER))
        return f"{self.name} {d}, {a}, {b}, {c}{self.tail}"


def span(first: int, count: int, bank: str = "v") -> str:
    return f"{bank}{first}" if count == 1 else f"{bank}[{first}:{first + count - 1}]"


def shapes() -> list[Shape]:
    found = []
    for arch in ("gfx942", "gfx950"):
        for m, k in ((16, 4), (32, 2)):
            found.append(Shape(arch, f"v_mfma_f32_{m}x{m}x{k}_f32", m, k, ("f32", "f32")))
        double = [(16, 32), (32, 16)] if arch == "gfx950" else []
        for kind in ("f16", "bf16"):
            for m, k in [(16, 16), (32, 8), *double]:
                found.append(Shape(arch, f"v_mfma_f32_{m}x{m}x{k}_{kind}", m, k, (kind, kind)))
        for a in ("fp8", "bf8"):
            for b in ("fp8", "bf8"):
                for m, k in ((16, 32), (32, 16)):
                    found.append(Shape(arch, f"v_mfma_f32_{m}x{m}x{k}_{a}_{b}", m, k, (a, b)))
        for m, k in [(16, 32), (32, 16), *([(16, 64), (32, 32)] if double else [])]:
            found.append(Shape(arch, f"v_mfma_i32_{m}x{m}x{k}_i8", m, k, ("i8", "i8")))
    for i, a in enumerate(("fp8", "bf8")):
        for j, b in enumerate(("fp8", "bf8")):
            for m, k in ((16, 128), (32, 64)):
                name, tail = f"v_mfma_f32_{m}x{m}x{k}_f8f6f4", f" cbsz:{i} blgp:{j}"
                found.append(Shape("gfx950", name, m, k, (a, b), tail if i or j else ""))
    return found


SHAPES = shapes()
IDS = [f"{s.arch}-{s.name[7:]}{s.tail.replace(' ', '-')}" for s in SHAPES]
SMALL: dict[str, Format] = {"f32": F32, "f16": F16, "bf16": BF16}


def decode(shape: Shape, kind: str, code: int) -> Fraction:
    if kind == "i8":
        return Fraction(code - 256 if code > 127 else code)
    if kind in SMALL:
        return SMALL[kind].value(code)
    value = FORMATS[INSTRUCTIONS[shape.arch, kind]].value(code)
    assert isinstance(value, Fraction)
    return value


def some_code(shape: Shape, kind: str, draw: random.Random) -> int:
    """Of a number of moderate size, so that float32 sums are nearly exact."""
    if kind == "i8":
        return draw.randrange(256)
    if kind in SMALL:
        return SMALL[kind].round(Fraction(draw.randrange(-64, 64), 16))
    form = FORMATS[INSTRUCTIONS[shape.arch, kind]]
    while True:
        code = draw.randrange(256)
        value = form.value(code)
        if isinstance(value, Fraction) and Fraction(1, 64) <= abs(value) <= 16:
            return code


def fill(wave: Wave, shape: Shape, first: int, codes: list[list[int]]) -> None:
    """codes: M rows (columns of B) of K."""
    words = np.zeros((shape.packed, 64), np.uint32)
    per_word = 32 // shape.bits
    for row, k in product(range(shape.m), range(shape.k)):
        if codes[row][k]:
            lane, index = shape.place(row, k)
            shift = shape.bits * (index % per_word)
            words[index // per_word, lane] |= np.uint32(codes[row][k] << shift)
    for i in range(shape.packed):
        set_vector(wave, first + i, [int(x) for x in words[i]])


def result(wave: Wave, shape: Shape) -> list[list[int]]:
    """D's words as a matrix."""
    matrix = [[-1] * shape.m for _ in range(shape.m)]
    for register in range(shape.results):
        words = vector(wave, D_REGISTER + register)
        for lane in range(64):
            row, column = shape.element(register, lane)
            assert matrix[row][column] == -1  # each element is in one place
            matrix[row][column] = words[lane]
    return matrix


def as_word(shape: Shape, exact: Fraction) -> int:
    if shape.kinds[0] == "i8":
        return int(exact) & 0xFFFFFFFF
    return F32.round(exact)


def random_codes(shape: Shape, side: int, draw: random.Random) -> list[list[int]]:
    kind = shape.kinds[side]
    return [[some_code(shape, kind, draw) for _ in range(shape.k)] for _ in range(shape.m)]


@pytest.mark.parametrize("shape", SHAPES, ids=IDS)
def test_products(shape: Shape) -> None:
    """D = A B + C of random numbers, every element; EXEC does not count."""
    draw = random.Random(shape.m * 1000 + shape.k)
    wave = new_wave(shape.arch)
    a, b = (random_codes(shape, side, draw) for side in (0, 1))
    fill(wave, shape, A_REGISTER, a)
    fill(wave, shape, B_REGISTER, b)
    c = [[Fraction(draw.randrange(-500, 500)) for _ in range(shape.m)] for _ in range(shape.m)]
    for register in range(shape.results):
        cells = [shape.element(register, lane) for lane in range(64)]
        set_vector(wave, C_REGISTER + register, [as_word(shape, c[i][j]) for i, j in cells])
    set_exec(wave, 0)
    step(wave, shape.text(span(C_REGISTER, shape.results)))
    actual = result(wave, shape)
    rows = [[decode(shape, shape.kinds[0], x) for x in row] for row in a]
    columns = [[decode(shape, shape.kinds[1], x) for x in column] for column in b]
    for i in range(shape.m):
        for j in range(shape.m):
            exact = c[i][j] + sum(
                (x * y for x, y in zip(rows[i], columns[j], strict=True)), Fraction()
            )
            assert actual[i][j] == as_word(shape, exact), (i, j)


@pytest.mark.parametrize("shape", SHAPES, ids=IDS)
def test_one_hot_elements(shape: Shape) -> None:
    """A single 1 in A[i, k] and one in B[k, j] give D[i, j] = 1 and nothing else, for every k."""
    one = {"f32": 0x3F800000, "f16": 0x3C00, "bf16": 0x3F80, "i8": 1}
    codes = [
        one[kind]
        if kind in one
        else FORMATS[INSTRUCTIONS[shape.arch, kind]].encode(0x3F800000, False)
        for kind in shape.kinds
    ]
    wave = new_wave(shape.arch)
    for k in range(shape.k):
        i, j = (k * 7 + 3) % shape.m, (k * 5 + 1) % shape.m
        for side, row, first in ((0, i, A_REGISTER), (1, j, B_REGISTER)):
            zeros = [[0] * shape.k for _ in range(shape.m)]
            zeros[row][k] = codes[side]
            fill(wave, shape, first, zeros)
        step(wave, shape.text("0"))
        actual = result(wave, shape)
        hits = [(r, c) for r in range(shape.m) for c in range(shape.m) if actual[r][c]]
        assert hits == [(i, j)], (k, hits)
        assert actual[i][j] == as_word(shape, Fraction(1))


def single(c: str, prepare: Callable[[Wave], None]) -> list[int]:
    """D's first register of a product of ones (K = 16) plus C."""
    wave = new_wave()
    for register in (A_REGISTER, A_REGISTER + 1, B_REGISTER, B_REGISTER + 1):
        set_vector(wave, register, 0x3C003C00)
    prepare(wave)
    step(wave, f"v_mfma_f32_16x16x16_f16 v[96:99], v[0:1], v[32:33], {c}")
    return vector(wave, 96)


def test_where_c_comes_from() -> None:
    assert single("0", lambda wave: None) == [F32.round(Fraction(16))] * 64
    assert single("1.0", lambda wave: None) == [F32.round(Fraction(17))] * 64

    def accumulators(wave: Wave) -> None:
        for i in range(4):
            set_vector(wave, 256 + 8 + i, F32.round(Fraction(-6)))

    assert single("a[8:11]", accumulators) == [F32.round(Fraction(10))] * 64

    def in_place(wave: Wave) -> None:
        for i in range(4):
            set_vector(wave, 96 + i, F32.round(Fraction(5)))

    assert single("v[96:99]", in_place) == [F32.round(Fraction(21))] * 64


def test_operands_and_results_in_accumulators() -> None:
    wave = new_wave()
    for register in (256, 257, 256 + 4, 256 + 5):
        set_vector(wave, register, 0x3C003C00)
    step(wave, "v_mfma_f32_16x16x16_f16 a[8:11], a[0:1], a[4:5], 0")
    assert vector(wave, 256 + 11) == [F32.round(Fraction(16))] * 64
    step(wave, "v_accvgpr_read_b32 v7, a10")
    assert vector(wave, 7) == [F32.round(Fraction(16))] * 64
    set_vector(wave, 7, [3 * i for i in range(64)])
    step(wave, "v_accvgpr_write_b32 a20, v7")
    step(wave, "v_accvgpr_mov_b32 a21, a20")
    assert vector(wave, 256 + 21) == [3 * i for i in range(64)]


def test_integer_sums_wrap() -> None:
    wave = new_wave()
    for i in range(2):
        set_vector(wave, i, 0x7F7F7F7F)
        set_vector(wave, 32 + i, 0x80808080)
    for i in range(4):
        set_vector(wave, 64 + i, 0x80000005)
    step(wave, "v_mfma_i32_16x16x32_i8 v[96:99], v[0:1], v[32:33], v[64:67]")
    assert vector(wave, 96) == [(0x80000005 - 32 * 127 * 128) & 0xFFFFFFFF] * 64
    step(wave, "v_mfma_i32_16x16x32_i8 v[96:99], v[0:1], v[32:33], -1")
    assert vector(wave, 96) == [(-1 - 32 * 127 * 128) & 0xFFFFFFFF] * 64


@pytest.mark.parametrize(("word", "what"), [(0x7E00, "nan"), (0x7C00, "infinity")])
def test_special_values_reach_their_row(word: int, what: str) -> None:
    wave = new_wave()
    for register in (0, 1, 32, 33):
        set_vector(wave, register, 0x3C003C00)
    set_vector(wave, 0, [0x3C003C00] * 5 + [0x3C000000 | word] + [0x3C003C00] * 58)  # A[5, 0]
    step(wave, "v_mfma_f32_16x16x16_f16 v[96:99], v[0:1], v[32:33], 0")
    for register in range(4):
        for lane, result_word in enumerate(vector(wave, 96 + register)):
            row = 4 * (lane // 16) + register
            special = F32.is_nan(result_word) if what == "nan" else result_word == F32.infinity
            assert special == (row == 5)


UNSUPPORTED = [
    ("gfx942", "v_mfma_f32_16x16x32_bf16 v[96:99], v[0:3], v[4:7], 0"),
    ("gfx942", "v_mfma_f32_32x32x16_f16 v[96:111], v[0:3], v[4:7], 0"),
    ("gfx942", "v_mfma_f32_16x16x128_f8f6f4 v[96:99], v[0:7], v[8:15], 0"),
    ("gfx942", "v_mfma_i32_16x16x64_i8 v[96:99], v[0:3], v[4:7], 0"),
    ("gfx942", "v_mfma_f32_16x16x8_xf32 v[96:99], v[0:1], v[4:5], 0"),
    ("gfx950", "v_mfma_f32_16x16x8_xf32 v[96:99], v[0:1], v[4:5], 0"),
    ("gfx950", "v_mfma_f32_16x16x64_fp8_fp8 v[96:99], v[0:3], v[4:7], 0"),
    ("gfx950", "v_mfma_f32_4x4x4_16b_f16 v[96:99], v[0:1], v[4:5], 0"),
    ("gfx950", "v_mfma_f32_32x32x4_2b_f16 v[96:127], v[0:1], v[4:5], 0"),
    ("gfx950", "v_mfma_f64_16x16x4_f64 v[96:103], v[0:1], v[4:5], 0"),
    ("gfx950", "v_mfma_scale_f32_16x16x128_f8f6f4 v[96:99], v[0:7], v[8:15], 0, v1, v2"),
    ("gfx950", "v_smfmac_f32_16x16x32_f16 v[96:99], v[0:1], v[4:7], v8"),
    ("gfx942", "v_mfma_i32_16x16x16_f16 v[96:99], v[0:1], v[4:5], 0"),
]


@pytest.mark.parametrize(("arch", "text"), UNSUPPORTED)
def test_shapes_that_are_not_simulated(arch: str, text: str) -> None:
    refused(text, f"{text.split()[0]} is not (simulated|implemented)", arch)


def test_refusals() -> None:
    shape = "v_mfma_f32_16x16x128_f8f6f4 v[96:99], v[0:7], v[8:15], 0"
    for format_number in (2, 3, 4):
        refused(f"{shape} cbsz:{format_number}", "FP6 and FP4", "gfx950")
        refused(f"{shape} blgp:{format_number}", "FP6 and FP4", "gfx950")
    plain = "v_mfma_f32_16x16x16_f16 v[96:99], v[0:1], v[32:33]"
    refused(f"{plain}, 0 cbsz:1", "modifier cbsz")
    refused(f"{plain}, s[0:3]", "not 4 registers")
    refused(f"{plain}, v[0:1]", "not 4 registers")
    refused(plain, "3 operands")
    refused("v_mfma_f32_16x16x16_f16 v[96:97], v[0:1], v[32:33], 0", "not 4 registers")
    refused("v_mfma_f32_16x16x16_f16 v[96:99], v0, v[32:33], 0", "not 2 registers")
    refused("v_mfma_f32_16x16x16_f16 v[96:99], v[0:1], s[32:33], 0", "not 2 registers")
    refused("v_mfma_f32_16x16x16_f16 v[96:99], v[0:1], v[32:33], off", "not 4 registers")
