"""Small Triton kernels as compiled for both chips, against torch."""

import os
from collections.abc import Callable, Iterator
from functools import reduce

import pytest
import torch
from torch import Tensor

from glm_portable.virtual import cdna

if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("compiles kernels: runs without TRITON_INTERPRET", allow_module_level=True)

from tests.virtual.cdna import triton_kernels as kernels

ARCHES = pytest.mark.parametrize("arch", ["gfx942", "gfx950"])
SIZE, BLOCK = 300, 128
FLOATS = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}
INTEGERS = {
    "i8": torch.int8,
    "u8": torch.uint8,
    "i16": torch.int16,
    "i32": torch.int32,
    "i64": torch.int64,
}


@pytest.fixture(autouse=True, scope="module")
def compiler(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_CACHE_DIR", str(tmp_path_factory.mktemp("triton")))
        yield


def blocks(size: int) -> tuple[int]:
    return (-(-size // BLOCK),)


def random_floats(dtype: torch.dtype, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(SIZE, generator=generator) * 4
    values[:8] = torch.tensor([0.0, -0.0, 1.0, -1.0, float("inf"), float("-inf"), 1e-40, 3e4])
    return values.to(dtype)


def same(actual: Tensor, expected: Tensor) -> None:
    """Equal, NaN where NaN is expected, and zeros of any sign."""
    assert actual.dtype == expected.dtype
    both_nan = actual.isnan() & expected.isnan() if actual.is_floating_point() else None
    equal = actual == expected if both_nan is None else (actual == expected) | both_nan
    assert bool(equal.all()), (actual[~equal][:4], expected[~equal][:4])


ELEMENTWISE: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "add": torch.add,
    "sub": torch.sub,
    "mul": torch.mul,
    "div": lambda x, y: (x.float() / y.float()).to(x.dtype),
    "minimum": lambda x, y: torch.fmin(x, y),
    "maximum": lambda x, y: torch.fmax(x, y),
    "where": lambda x, y: torch.where(x < y, x, y * 2),
    "floor": lambda x, _: torch.floor(x),
    "clamp": lambda x, _: x.clamp(-1, 1),
}


@ARCHES
@pytest.mark.parametrize(
    ("op", "kind"),
    [
        *((op, "f32") for op in (*ELEMENTWISE,)),
        *((op, "bf16") for op in ("add", "mul", "where")),
        *((op, "f16") for op in ("sub", "mul", "minimum", "floor")),
    ],
)
def test_elementwise(op: str, kind: str, arch: str) -> None:
    x, y = random_floats(FLOATS[kind], 1), random_floats(FLOATS[kind], 2).flip(0)
    out = torch.zeros_like(x)
    cdna.launch(kernels.floats, blocks(SIZE), x, y, out, SIZE, OP=op, BLOCK=BLOCK, arch=arch)
    same(out, ELEMENTWISE[op](x, y))


@ARCHES
def test_fma(arch: str) -> None:
    """Rounded once: beside float64's sum, which is exact for these."""
    x, y = torch.linspace(1, 2, SIZE), torch.linspace(-2, -1, SIZE)
    out = torch.zeros_like(x)
    cdna.launch(kernels.floats, blocks(SIZE), x, y, out, SIZE, OP="fma", BLOCK=BLOCK, arch=arch)
    same(out, (x.double() * y.double() + x.double()).float())


FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "exp": torch.exp,
    "exp2": torch.exp2,
    "log": torch.log,
    "log2": torch.log2,
    "sin": torch.sin,
    "cos": torch.cos,
    "sqrt": torch.sqrt,
    "rsqrt": torch.rsqrt,
    "erf": torch.erf,
    "sigmoid": torch.sigmoid,
}


@ARCHES
@pytest.mark.parametrize("op", FUNCTIONS)
def test_functions(op: str, arch: str) -> None:
    """Within a few units of float32's last place, denormals included; square roots exactly."""
    x = random_floats(torch.float32, 3)
    x[8:12] = torch.tensor([2e-45, 1e-38, 1000.0, 1e30])
    if op in ("log", "log2", "sqrt", "rsqrt"):
        x = x.abs()
    out = torch.zeros_like(x)
    cdna.launch(kernels.functions, blocks(SIZE), x, out, SIZE, OP=op, BLOCK=BLOCK, arch=arch)
    exact = FUNCTIONS[op](x.double())
    if op == "sqrt":
        same(out, exact.float())
    elif op == "rsqrt":  # approximate: of a denormal infinity
        assert torch.allclose(out[12:].double(), exact[12:], rtol=2e-6, atol=0)
    else:
        expected = exact.float().double()
        torch.testing.assert_close(out.double(), expected, rtol=2e-6, atol=2e-7, equal_nan=True)


def divided(x: Tensor, y: Tensor) -> Tensor:
    return torch.div(x, y, rounding_mode="trunc")


ON_INTEGERS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "add": torch.add,
    "mul": torch.mul,
    "div": divided,
    "mod": torch.fmod,
    "minimum": torch.minimum,
    "left": lambda x, y: x << (y & 7),
    "right": lambda x, y: x >> (y & 7),
    "bits": lambda x, y: (x & y) ^ (x | ~y),
    "where": lambda x, y: torch.where(x < y, -x, y),
}


def random_integers(dtype: torch.dtype, seed: int, shape: tuple[int, ...] = (SIZE,)) -> Tensor:
    info = torch.iinfo(dtype)
    generator = torch.Generator().manual_seed(seed)
    values = torch.randint(info.min, info.max, shape, dtype=dtype, generator=generator)
    values.view(-1)[:2] = torch.tensor([info.min, info.max])
    return values


@ARCHES
@pytest.mark.parametrize(
    ("op", "kind"),
    [
        *((op, kind) for op in ("div", "minimum") for kind in INTEGERS),
        *((op, "i8") for op in ("mul", "right", "where")),
        *((op, "i32") for op in ("mod", "bits", "where")),
        *((op, "i64") for op in ("add", "mul", "left", "right")),
    ],
)
def test_integers(op: str, kind: str, arch: str) -> None:
    x, y = random_integers(INTEGERS[kind], 4), random_integers(INTEGERS[kind], 5)
    if op in ("div", "mod"):
        y[100:] = y[100:] % 9 + 1
        y[y == 0] = 3
        y[0] = 7
    out = torch.zeros_like(x)
    cdna.launch(kernels.integers, blocks(SIZE), x, y, out, SIZE, OP=op, BLOCK=BLOCK, arch=arch)
    same(out, ON_INTEGERS[op](x, y))


CASTS = [
    ("f32", "bf16"), ("f32", "f16"), ("bf16", "f32"), ("f16", "f32"), ("f16", "bf16"),
    ("bf16", "f16"), ("f32", "i32"), ("f32", "i8"), ("f16", "i8"), ("i32", "f32"), ("i64", "f32"),
    ("i8", "f16"), ("u8", "f16"), ("i8", "i64"), ("i64", "i8"), ("u8", "bf16"), ("bf16", "i32"),
]  # fmt: skip


@ARCHES
@pytest.mark.parametrize(("source", "target"), CASTS)
def test_casts(source: str, target: str, arch: str) -> None:
    types = {**FLOATS, **INTEGERS}
    if source in FLOATS:
        x = random_floats(types[source], 6)
        if target in INTEGERS:
            x = x.nan_to_num(0, 0, 0).clamp(-100, 100)
    else:
        x = random_integers(types[source], 6)
    out = torch.zeros(SIZE, dtype=types[target])
    cdna.launch(kernels.cast, blocks(SIZE), x, out, SIZE, BLOCK=BLOCK, arch=arch)
    same(out, x.to(types[target]))


REDUCED: dict[str, Callable[[Tensor, int], Tensor]] = {
    "sum": lambda x, axis: x.sum(axis, dtype=x.dtype if x.is_floating_point() else torch.int32),
    "max": lambda x, axis: x.max(axis).values,
    "argmax": lambda x, axis: first(x == x.max(axis, keepdim=True).values, axis),
    "argmin": lambda x, axis: first(x == x.min(axis, keepdim=True).values, axis),
    "xor": lambda x, axis: reduce(torch.bitwise_xor, x.unbind(axis)),
}


def first(chosen: Tensor, axis: int) -> Tensor:
    """The lowest index among equals."""
    places = torch.arange(chosen.shape[axis], dtype=torch.int32)
    shape = (-1, 1) if axis == 0 else (1, -1)
    return torch.where(chosen, places.reshape(shape), 1 << 20).min(axis).values.to(torch.int32)


@ARCHES
@pytest.mark.parametrize(
    ("op", "dtype", "axis", "warps"),
    [
        ("sum", torch.float32, 1, 1),
        ("sum", torch.int8, 1, 4),
        ("sum", torch.bfloat16, 0, 8),
        ("sum", torch.float16, 1, 2),
        ("max", torch.float32, 0, 4),
        ("max", torch.float16, 1, 1),
        ("max", torch.int16, 1, 8),
        ("argmax", torch.float32, 1, 4),
        ("argmax", torch.int8, 0, 1),
        ("argmin", torch.float16, 0, 4),
        ("argmin", torch.int32, 1, 8),
        ("xor", torch.int32, 0, 1),
    ],
)
def test_reductions(op: str, dtype: torch.dtype, axis: int, warps: int, arch: str) -> None:
    generator = torch.Generator().manual_seed(7)
    x = torch.randint(-9, 9, (16, 32), generator=generator).to(dtype)  # sums are exact
    expected = REDUCED[op](x, axis)
    out = torch.zeros_like(expected)
    cdna.launch(
        kernels.reduce, (1,), x, out, M=16, N=32, OP=op, AXIS=axis, arch=arch, num_warps=warps
    )
    same(out, expected)


ROWS: dict[str, Callable[[Tensor], Tensor]] = {
    "cumsum": lambda x: x.cumsum(1, dtype=x.dtype),
    "cumsum_back": lambda x: x.flip(1).cumsum(1, dtype=x.dtype).flip(1),
    "sort": lambda x: x.sort(1).values,
    "sort_down": lambda x: x.sort(1, descending=True).values,
    "flip": lambda x: x.flip(1),
}


@ARCHES
@pytest.mark.parametrize(
    ("op", "dtype", "warps"),
    [
        ("cumsum", torch.int32, 1),
        ("cumsum", torch.float32, 4),
        ("cumsum_back", torch.int64, 2),
        ("sort", torch.float32, 4),
        ("sort", torch.int8, 1),
        ("sort_down", torch.int32, 8),
        ("sort_down", torch.float16, 2),
        ("flip", torch.bfloat16, 4),
    ],
)
def test_along_rows(op: str, dtype: torch.dtype, warps: int, arch: str) -> None:
    generator = torch.Generator().manual_seed(8)
    x = torch.randint(-50, 50, (8, 32), generator=generator).to(dtype)  # sums are exact
    out = torch.zeros_like(x)
    cdna.launch(kernels.along_rows, (1,), x, out, M=8, N=32, OP=op, arch=arch, num_warps=warps)
    same(out, ROWS[op](x))


@ARCHES
def test_softmax(arch: str) -> None:
    x = torch.randn(8, 64, generator=torch.Generator().manual_seed(9)) * 5
    out = torch.zeros_like(x)
    cdna.launch(kernels.along_rows, (1,), x, out, M=8, N=64, OP="softmax", arch=arch)
    torch.testing.assert_close(out.double(), x.double().softmax(1), rtol=3e-6, atol=1e-9)


@ARCHES
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8, torch.int64])
def test_transpose(dtype: torch.dtype, arch: str) -> None:
    x = torch.arange(32 * 64).remainder(127).to(dtype).reshape(32, 64)
    out = torch.zeros(64, 32, dtype=dtype)
    cdna.launch(kernels.transpose, (1,), x, out, M=32, N=64, arch=arch)
    same(out, x.T.contiguous())


def dot_types(arch: str) -> dict[str, torch.dtype]:
    ocp = arch == "gfx950"
    return {
        "f32": torch.float32,
        "f16": torch.float16,
        "bf16": torch.bfloat16,
        "i8": torch.int8,
        "fp8": torch.float8_e4m3fn if ocp else torch.float8_e4m3fnuz,
        "bf8": torch.float8_e5m2 if ocp else torch.float8_e5m2fnuz,
    }


@ARCHES
@pytest.mark.parametrize("tile", [16, 32])
@pytest.mark.parametrize("kind", ["f32", "f16", "bf16", "i8", "fp8", "bf8"])
def test_dot(kind: str, tile: int, arch: str) -> None:
    """Of small integers, so that every sum is exact; with MFMA tiles of 16 and of 32."""
    generator = torch.Generator().manual_seed(tile)
    a, b = (torch.randint(-4, 5, s, generator=generator) for s in ((32, 128), (128, 64)))
    dtype = dot_types(arch)[kind]
    c = torch.zeros(32, 64, dtype=torch.int32 if kind == "i8" else torch.float32)
    options = {"matrix_instr_nonkdim": tile, "num_warps": 2 if tile == 16 else 1}
    statistics = cdna.launch(
        kernels.dot, (1,), a.to(dtype), b.to(dtype), c, M=32, N=64, K=128, arch=arch, **options
    )
    assert statistics.instructions["mfma"] > 0
    same(c, (a @ b).to(c.dtype))
