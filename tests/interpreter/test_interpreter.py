"""Triton's interpreter after correction; each defect is first shown without it."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial

import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor

from glm_portable.errors import UsageError
from glm_portable.virtual import interpreter

FLOAT8 = [torch.float8_e4m3fn, torch.float8_e4m3fnuz, torch.float8_e5m2, torch.float8_e5m2fnuz]


@triton.jit
def dot_kernel(a_ptr, b_ptr, out_ptr, SIZE: tl.constexpr):
    rows = tl.arange(0, SIZE)[:, None]
    columns = tl.arange(0, SIZE)[None, :]
    a = tl.load(a_ptr + rows * SIZE + columns)
    b = tl.load(b_ptr + rows * SIZE + columns)
    tl.store(out_ptr + rows * SIZE + columns, tl.dot(a, b))


@triton.jit
def cast_kernel(x_ptr, out_ptr, SIZE: tl.constexpr):
    x = tl.load(x_ptr + tl.arange(0, SIZE))
    tl.store(out_ptr + tl.arange(0, SIZE), x.to(out_ptr.dtype.element_ty))


@triton.jit
def arithmetic_kernel(a_ptr, b_ptr, out_ptr, OP: tl.constexpr, SIZE: tl.constexpr):
    a = tl.load(a_ptr + tl.arange(0, SIZE))
    b = tl.load(b_ptr + tl.arange(0, SIZE))
    if OP == "add":
        y = a + b
    elif OP == "mul":
        y = a * b
    elif OP == "negative":
        y = -a
    elif OP == "maximum":
        y = tl.maximum(a, b)
    elif OP == "greater":
        y = tl.where(a > b, a, b)
    elif OP == "clamp":
        y = tl.clamp(a, -tl.abs(b), tl.abs(b))
    else:
        y = tl.fma(a, b, a)
    tl.store(out_ptr + tl.arange(0, SIZE), y)


@triton.jit
def atomic_add_kernel(x_ptr, out_ptr, SIZE: tl.constexpr):
    i = tl.arange(0, SIZE)
    tl.atomic_add(out_ptr + i % 4, tl.load(x_ptr + i), mask=i < SIZE - 4)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def every_code(dtype: torch.dtype) -> Tensor:
    """All values of an 8-bit type, or 16-bit type."""
    if dtype.itemsize == 1:
        return torch.arange(256, dtype=torch.int32).to(torch.uint8).view(dtype)
    return torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)


def dot(a: Tensor, b: Tensor) -> Tensor:
    out = torch.empty(a.shape)
    dot_kernel[(1,)](a, b, out, SIZE=len(a))
    return out


def cast(x: Tensor, dtype: torch.dtype) -> Tensor:
    size = triton.next_power_of_2(len(x))
    padded = torch.zeros(size, dtype=torch.float32).to(x.dtype)
    padded[: len(x)] = x
    out = torch.empty(size, dtype=dtype)
    cast_kernel[(1,)](padded, out, SIZE=size)
    return out[: len(x)]


def same(a: Tensor, b: Tensor) -> bool:
    """Equal values, NaN equal to NaN."""
    return torch.equal(a.double().nan_to_num(12345.0), b.double().nan_to_num(12345.0))


def dot_is_right(dtype: torch.dtype) -> bool:
    a, b = normal(32, 32).to(dtype), normal(32, 32, seed=1).to(dtype)
    return torch.allclose(dot(a, b).double(), a.double() @ b.double(), atol=2e-5)


def rounding_is_right(dtype: torch.dtype) -> bool:
    """Ties and near-ties between neighbours, subnormal and large; saturated beyond the largest."""
    x = every_code(torch.bfloat16).float() if dtype != torch.bfloat16 else normal(4096) ** 5
    top = torch.finfo(dtype).max if dtype.itemsize == 1 else torch.inf
    x = x[~x.isnan()]
    return same(cast(x, dtype), x.clamp(-top, top).to(dtype))


def nan_is_kept(dtype: torch.dtype) -> bool:
    return bool(cast(torch.tensor([torch.nan]), dtype).float().isnan().all())


def widening_is_right(dtype: torch.dtype) -> bool:
    codes = every_code(dtype)
    return same(cast(codes, torch.float32), codes.float())


BF16_OPS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "add": torch.add,
    "mul": torch.mul,
    "negative": lambda a, b: -a,
    "maximum": torch.maximum,
    "greater": torch.maximum,
    "clamp": lambda a, b: a.clamp(-b.abs(), b.abs()),
    "fma": lambda a, b: (a.double() * b.double() + a.double()).bfloat16(),
}


def arithmetic_is_right(op: str) -> bool:
    a, b = (normal(64, seed=s).bfloat16() for s in (0, 1))
    out = torch.empty_like(a)
    arithmetic_kernel[(1,)](a, b, out, OP=op, SIZE=64)
    return torch.equal(out, BF16_OPS[op](a, b))


def atomic_add_is_right() -> bool:
    x, out = torch.arange(16).bfloat16(), torch.zeros(4).bfloat16()
    try:
        atomic_add_kernel[(1,)](x, out, SIZE=16)
    except Exception as error:  # what the unpatched interpreter raises is part of the defect
        assert "Unsupported data type" in str(error)
        return False
    return out.tolist() == [0 + 4 + 8, 1 + 5 + 9, 2 + 6 + 10, 3 + 7 + 11]


DEFECTS: dict[str, Callable[[], bool]] = {
    "dot of bf16": partial(dot_is_right, torch.bfloat16),
    "fp32 to bf16": partial(rounding_is_right, torch.bfloat16),
    **{f"fp32 to {d}": partial(rounding_is_right, d) for d in FLOAT8},
    **{f"{d} to fp32": partial(widening_is_right, d) for d in FLOAT8},
    "NaN to e4m3fn": partial(nan_is_kept, torch.float8_e4m3fn),
    "NaN to e4m3fnuz": partial(nan_is_kept, torch.float8_e4m3fnuz),
    **{f"bf16 {op}": partial(arithmetic_is_right, op) for op in BF16_OPS},
    "bf16 atomic add": atomic_add_is_right,
}


@pytest.mark.parametrize("holds", DEFECTS.values(), ids=DEFECTS)
def test_a_defect_of_the_interpreter_is_corrected(holds: Callable[[], bool]) -> None:
    assert not holds(), "triton no longer has this defect: its correction can go"
    with interpreter.corrected():
        assert holds()


@pytest.mark.parametrize("machine", [nullcontext, interpreter.corrected])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, *FLOAT8])
def test_what_was_right_stays_right(
    dtype: torch.dtype, machine: Callable[[], AbstractContextManager[None]]
) -> None:
    with machine():
        a, b = (normal(32, 32, seed=s).to(dtype) for s in (0, 1))
        assert torch.allclose(dot(a, b).double(), a.double() @ b.double(), atol=5e-5)


def test_integers_convert_to_and_from_bf16() -> None:
    with interpreter.corrected():
        integers = torch.arange(-300, 300, dtype=torch.int32)
        assert torch.equal(cast(integers, torch.bfloat16), integers.bfloat16())
        numbers = torch.tensor([-3.7, 0.0, 2.5, 300.0]).bfloat16()
        assert cast(numbers, torch.int32).tolist() == [-3, 0, 2, 300]


def test_the_correction_ends_with_its_context() -> None:
    with interpreter.corrected():
        assert dot_is_right(torch.bfloat16)
    assert not dot_is_right(torch.bfloat16)


def test_another_triton_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton, "__version__", "3.10.0")
    with pytest.raises(UsageError, match="triton 3.10.0 is installed"), interpreter.corrected():
        pass


def test_a_kernel_imported_for_compilation_is_refused() -> None:
    def kernel() -> None: ...

    with pytest.raises(UsageError, match="kernel kernel was imported for compilation"):
        interpreter.launch(kernel, (1,), options={})
