"""Small Triton kernels that exercise what this project's own do not."""

# Triton has no types of its own, and a kernel's parameters are Triton's and not Python's.
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

import triton
import triton.language as tl


@triton.jit
def atomic(
    x_ptr, at_ptr, value_ptr, old_ptr, n, OP: tl.constexpr, KEEP: tl.constexpr, BLOCK: tl.constexpr
):
    """x[at] op= value for n values; old: what was there, if KEEP."""
    offs = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = offs < n
    ptrs = x_ptr + tl.load(at_ptr + offs, mask=mask, other=0)
    value = tl.load(value_ptr + offs, mask=mask, other=0)
    if OP == "add":
        old = tl.atomic_add(ptrs, value, mask=mask)
    elif OP == "max":
        old = tl.atomic_max(ptrs, value, mask=mask)
    elif OP == "min":
        old = tl.atomic_min(ptrs, value, mask=mask)
    elif OP == "and":
        old = tl.atomic_and(ptrs, value, mask=mask)
    elif OP == "or":
        old = tl.atomic_or(ptrs, value, mask=mask)
    elif OP == "xor":
        old = tl.atomic_xor(ptrs, value, mask=mask)
    elif OP == "swap":
        old = tl.atomic_xchg(ptrs, value, mask=mask)
    if KEEP:
        tl.store(old_ptr + offs, old, mask=mask)


@triton.jit
def claim(lock_ptr, out_ptr):
    """The first program to swap 0 for its number plus one leaves it in `out`."""
    me = tl.program_id(0) + 1
    before = tl.atomic_cas(lock_ptr, 0, me)
    tl.store(out_ptr + tl.program_id(0), before)


@triton.jit
def histogram(x_ptr, out_ptr, n, BLOCK: tl.constexpr, BINS: tl.constexpr):
    offs = tl.arange(0, BLOCK)
    counts = tl.histogram(tl.load(x_ptr + offs, mask=offs < n, other=0), BINS, mask=offs < n)
    tl.store(out_ptr + tl.arange(0, BINS), counts)


@triton.jit
def reorder(x_ptr, out_ptr, OP: tl.constexpr, N: tl.constexpr):
    offs = tl.arange(0, N)
    x = tl.load(x_ptr + offs)
    if OP == "sort":
        result = tl.sort(x)
    elif OP == "flip":
        result = tl.flip(x)
    elif OP == "cumsum":
        result = tl.cumsum(x)
    elif OP == "gather":
        result = tl.gather(x, (offs * 7 + 3) % N, 0)
    elif OP == "transpose":
        result = tl.reshape(tl.trans(tl.reshape(x, (16, N // 16))), (N,))
    tl.store(out_ptr + offs, result)


@triton.jit
def axpy(x_ptr, y_ptr, out_ptr, n, a, twice, BLOCK: tl.constexpr):
    """out = a x + y, doubled if `twice`; y may be None."""
    offs = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    total = tl.load(x_ptr + offs, mask=offs < n, other=0.0) * a
    if y_ptr is not None:
        total += tl.load(y_ptr + offs, mask=offs < n, other=0.0)
    if twice:
        total *= 2
    tl.store(out_ptr + offs, total, mask=offs < n)
