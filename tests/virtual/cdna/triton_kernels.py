"""Small Triton kernels, one operation each, for what the simulator makes of compiled code."""

# Triton has no types of its own, and a kernel's parameters are Triton's and not Python's.
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

import triton
import triton.language as tl


@triton.jit
def floats(x_ptr, y_ptr, out_ptr, n, OP: tl.constexpr, BLOCK: tl.constexpr):
    """out = OP(x, y) for the first n elements, in the tensors' own type."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = i < n
    x, y = tl.load(x_ptr + i, mask=mask, other=0), tl.load(y_ptr + i, mask=mask, other=1)
    if OP == "add":
        out = x + y
    elif OP == "sub":
        out = x - y
    elif OP == "mul":
        out = x * y
    elif OP == "div":
        out = x / y
    elif OP == "fma":
        out = tl.fma(x, y, x)
    elif OP == "minimum":
        out = tl.minimum(x, y)
    elif OP == "maximum":
        out = tl.maximum(x, y)
    elif OP == "where":
        out = tl.where(x < y, x, y * 2)
    elif OP == "floor":
        out = tl.floor(x.to(tl.float32)).to(x.dtype)
    elif OP == "clamp":
        out = tl.clamp(x, -1.0, 1.0)
    tl.store(out_ptr + i, out, mask=mask)


@triton.jit
def functions(x_ptr, out_ptr, n, OP: tl.constexpr, BLOCK: tl.constexpr):
    """out = OP(x), in float32."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = i < n
    x = tl.load(x_ptr + i, mask=mask, other=0).to(tl.float32)
    if OP == "exp":
        out = tl.exp(x)
    elif OP == "exp2":
        out = tl.exp2(x)
    elif OP == "log":
        out = tl.log(x)
    elif OP == "log2":
        out = tl.log2(x)
    elif OP == "sin":
        out = tl.sin(x)
    elif OP == "cos":
        out = tl.cos(x)
    elif OP == "sqrt":
        out = tl.sqrt_rn(x)
    elif OP == "rsqrt":
        out = tl.rsqrt(x)
    elif OP == "erf":
        out = tl.erf(x)
    elif OP == "sigmoid":
        out = tl.sigmoid(x)
    tl.store(out_ptr + i, out, mask=mask)


@triton.jit
def integers(x_ptr, y_ptr, out_ptr, n, OP: tl.constexpr, BLOCK: tl.constexpr):
    """out = OP(x, y), in the tensors' own type."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = i < n
    x, y = tl.load(x_ptr + i, mask=mask, other=0), tl.load(y_ptr + i, mask=mask, other=1)
    if OP == "add":
        out = x + y
    elif OP == "mul":
        out = x * y
    elif OP == "div":
        out = x // y
    elif OP == "mod":
        out = x % y
    elif OP == "minimum":
        out = tl.minimum(x, y)
    elif OP == "left":
        out = x << (y & 7)
    elif OP == "right":
        out = x >> (y & 7)
    elif OP == "bits":
        out = (x & y) ^ (x | ~y)
    elif OP == "where":
        out = tl.where(x < y, -x, y)
    tl.store(out_ptr + i, out, mask=mask)


@triton.jit
def cast(x_ptr, out_ptr, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + i, mask=i < n)
    tl.store(out_ptr + i, x.to(out_ptr.dtype.element_ty), mask=i < n)


@triton.jit
def reduce(x_ptr, out_ptr, M: tl.constexpr, N: tl.constexpr, OP: tl.constexpr, AXIS: tl.constexpr):
    """x (M, N) along an axis."""
    x = tl.load(x_ptr + tl.arange(0, M)[:, None] * N + tl.arange(0, N)[None, :])
    if OP == "sum":
        out = tl.sum(x, AXIS)
    elif OP == "max":
        out = tl.max(x, AXIS)
    elif OP == "argmax":
        out = tl.argmax(x, AXIS)
    elif OP == "argmin":
        out = tl.argmin(x, AXIS)
    elif OP == "xor":
        out = tl.xor_sum(x, AXIS)
    tl.store(out_ptr + tl.arange(0, M if AXIS == 1 else N), out)


@triton.jit
def along_rows(x_ptr, out_ptr, M: tl.constexpr, N: tl.constexpr, OP: tl.constexpr):
    """x (M, N), each row."""
    offs = tl.arange(0, M)[:, None] * N + tl.arange(0, N)[None, :]
    x = tl.load(x_ptr + offs)
    if OP == "cumsum":
        out = tl.cumsum(x, 1)
    elif OP == "cumsum_back":
        out = tl.cumsum(x, 1, reverse=True)
    elif OP == "sort":
        out = tl.sort(x, 1)
    elif OP == "sort_down":
        out = tl.sort(x, 1, descending=True)
    elif OP == "flip":
        out = tl.flip(x, 1)
    elif OP == "softmax":
        e = tl.exp(x - tl.max(x, 1)[:, None])
        out = e / tl.sum(e, 1)[:, None]
    tl.store(out_ptr + offs, out)


@triton.jit
def transpose(x_ptr, out_ptr, M: tl.constexpr, N: tl.constexpr):
    m, n = tl.arange(0, M), tl.arange(0, N)
    x = tl.load(x_ptr + m[:, None] * N + n[None, :])
    tl.store(out_ptr + n[:, None] * M + m[None, :], tl.trans(x))


@triton.jit
def dot(a_ptr, b_ptr, c_ptr, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr):
    """c (M, N) = a (M, K) @ b (K, N); c's type is the sum's."""
    m, n, k = tl.arange(0, M), tl.arange(0, N), tl.arange(0, K)
    a = tl.load(a_ptr + m[:, None] * K + k[None, :])
    b = tl.load(b_ptr + k[:, None] * N + n[None, :])
    c = tl.dot(a, b, input_precision="ieee", out_dtype=c_ptr.dtype.element_ty)
    tl.store(c_ptr + m[:, None] * N + n[None, :], c)
