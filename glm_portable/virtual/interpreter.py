"""Triton 3.9's interpreter with bfloat16 and float8 made right.

The interpreter runs kernels on the CPU with numpy, which has neither type: bfloat16 is kept as
uint16 and float8 as uint8. Unpatched, products, comparisons and matrix products of bfloat16 work
on those bits as integers (errors of 1e11), float32 -> bfloat16 truncates, float32 -> float8
neither saturates nor rounds to nearest even, and NaN codes come out as finite numbers
(triton issue 11584). Here every such operation goes through float32 and torch's conversions.

It shows that the algorithm of a kernel is right. It shows nothing about compiled code.
TRITON_INTERPRET=1 must be set before the first kernel is imported, for the whole process.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.runtime import interpreter
from triton.runtime.interpreter import InterpretedFunction, InterpreterBuilder, TensorHandle

from glm_portable.errors import UsageError

_TORCH = {
    tl.float8e4nv: torch.float8_e4m3fn,
    tl.float8e4b8: torch.float8_e4m3fnuz,
    tl.float8e5: torch.float8_e5m2,
    tl.float8e5b16: torch.float8_e5m2fnuz,
    tl.bfloat16: torch.bfloat16,
}
"""The types that numpy does not have."""


class CorrectBuilder(InterpreterBuilder):  # type: ignore[misc]  # triton has no types
    """The interpreter's operations, those on the types of `_TORCH` computed through float32."""

    def cast_impl(self, src: Any, dst_type: Any) -> Any:
        source, target = src.dtype.scalar, dst_type.scalar
        if source == target:
            return TensorHandle(src.data, target)
        if target in _TORCH:
            return _narrow(_numbers(src), target)
        if source in _TORCH:
            return super().cast_impl(_wide(src), dst_type)
        return super().cast_impl(src, dst_type)

    def create_fp_to_fp(self, src: Any, dst_type: Any, rounding_mode: Any) -> Any:
        toward_zero = rounding_mode == interpreter._ir.ROUNDING_MODE.RTZ
        if toward_zero or not {src.dtype.scalar, dst_type.scalar} & _TORCH.keys():
            return super().create_fp_to_fp(src, dst_type, rounding_mode)
        return self.cast_impl(src, dst_type)

    def create_dot(self, a: Any, b: Any, d: Any, input_precision: Any, imprecise: Any) -> Any:
        return super().create_dot(_wide(a), _wide(b), d, input_precision, imprecise)

    def binary_op(self, lhs: Any, rhs: Any, op: Any) -> Any:
        if lhs.dtype.scalar != tl.bfloat16:
            return super().binary_op(lhs, rhs, op)
        result = op(_numbers(lhs), _numbers(rhs))
        if result.dtype == np.bool_:
            return TensorHandle(result, tl.int1)
        return _narrow(result, tl.bfloat16)

    def unary_op(self, arg: Any, op: Any) -> Any:
        if arg.dtype.scalar != tl.bfloat16:
            return super().unary_op(arg, op)
        return _narrow(op(_numbers(arg)), tl.bfloat16)

    def create_fma(self, x: Any, y: Any, z: Any) -> Any:
        if z.dtype.scalar != tl.bfloat16:
            return super().create_fma(x, y, z)
        return self.cast_impl(super().create_fma(_wide(x), _wide(y), _wide(z)), tl.bfloat16)

    def create_clampf(self, arg: Any, low: Any, high: Any, propagate_nans: Any) -> Any:
        if arg.dtype.scalar != tl.bfloat16:
            return super().create_clampf(arg, low, high, propagate_nans)
        wide = super().create_clampf(_wide(arg), _wide(low), _wide(high), propagate_nans)
        return self.cast_impl(wide, tl.bfloat16)

    def create_atomic_rmw(
        self, operation: Any, ptr: Any, val: Any, mask: Any, sem: Any, scope: Any
    ) -> Any:
        if val.dtype.scalar != tl.bfloat16:
            return super().create_atomic_rmw(operation, ptr, val, mask, sem, scope)
        combine = {
            interpreter._ir.ATOMIC_OP.FADD: self.create_fadd,
            interpreter._ir.ATOMIC_OP.XCHG: lambda old, new: new,
        }[operation]
        before = np.zeros(ptr.data.shape, np.uint16)
        for i in np.ndindex(ptr.data.shape):  # one after the other: two may have one address
            if mask.data[i]:
                place = TensorHandle(ptr.data[i].reshape(1), ptr.dtype)
                old = self.create_load(place, None, False)
                new = TensorHandle(val.data[i].reshape(1), tl.bfloat16)
                self.create_store(place, combine(old, new), None)
                before[i] = old.data[0]
        return TensorHandle(before, tl.bfloat16)


@contextmanager
def corrected() -> Iterator[None]:
    """Within it, interpreted kernels compute with the corrected operations."""
    builder = interpreter.interpreter_builder
    kept = builder.__class__
    if not triton.__version__.startswith("3.9."):
        raise UsageError(
            f"triton {triton.__version__} is installed, but the interpreter's corrections are "
            "written for 3.9; install triton==3.9.0."
        )
    builder.__class__ = CorrectBuilder
    try:
        yield
    finally:
        builder.__class__ = kept


def launch(
    kernel: Any,
    grid: tuple[int, ...],
    *arguments: Tensor | int | float | None,
    options: Mapping[str, int],
    **constexprs: Any,
) -> None:
    """Run a kernel in the corrected interpreter; the compiler's `options` have no meaning here."""
    if not isinstance(kernel, InterpretedFunction):
        raise UsageError(
            f"kernel {kernel.__name__} was imported for compilation; set TRITON_INTERPRET=1 before "
            "the process starts to interpret it."
        )
    with corrected():
        kernel[grid](*arguments, **constexprs)


def _numbers(handle: Any) -> np.ndarray[Any, Any]:
    """The values: float32 for the types numpy lacks, else as they are."""
    data, dtype = handle.data, handle.dtype.scalar
    if dtype not in _TORCH:
        return data  # type: ignore[no-any-return]
    signed = data.view(np.int8 if data.itemsize == 1 else np.int16)
    bits = torch.from_numpy(np.array(signed, order="C", ndmin=1))
    return bits.view(_TORCH[dtype]).float().numpy().reshape(data.shape)


def _wide(handle: Any) -> Any:
    dtype = handle.dtype.scalar
    return TensorHandle(_numbers(handle), tl.float32 if dtype in _TORCH else dtype)


def _narrow(numbers: np.ndarray[Any, Any], dtype: Any) -> Any:
    """Round to nearest even; beyond the largest float8, as the chips do, to the largest."""
    wide = torch.from_numpy(np.array(numbers, dtype=np.float32, order="C", ndmin=1))
    if dtype != tl.bfloat16:
        top = torch.finfo(_TORCH[dtype]).max
        wide = wide.clamp(-top, top)  # keeps NaN
    bits = wide.to(_TORCH[dtype])
    unsigned = bits.view(torch.uint16 if dtype == tl.bfloat16 else torch.uint8)
    return TensorHandle(unsigned.numpy().reshape(np.shape(numbers)), dtype)
