"""Numbers for cases: every one is on BF16's grid, and the same on every machine.

They come from the bits of PCG64 by integer arithmetic, division and rounding alone. A generator of
normal numbers would not do: its logarithms differ from one processor to the next in the last bit.
"""

from dataclasses import replace
from math import prod, sqrt

import numpy as np
import torch
from torch import Tensor

from glm_portable.ops import Ops, Weight

FP8, FNUZ, INT8 = torch.float8_e4m3fn, torch.float8_e4m3fnuz, torch.int8
BITS = np.dtype("<u8")
DEVIATION = 65536 / sqrt(3)
"""Of a sum of four numbers from 0 to 65535."""
MIDDLE = 2 * 65535
PIECE = 1 << 20
"""Numbers made at once: weights of real models take gigabytes."""


class Source:
    """A stream of numbers; the same seed gives the same stream."""

    def __init__(self, seed: int) -> None:
        self._bits = np.random.PCG64(seed)

    def raw(self, *shape: int) -> "np.ndarray[tuple[int, ...], np.dtype[np.uint64]]":
        return self._bits.random_raw(prod(shape)).astype(BITS).reshape(shape)

    def normal(self, *shape: int, outliers: bool = False) -> Tensor:
        """Nearly normal (a sum of four uniform numbers); with `outliers`, one column in 32 is 30
        times as large."""
        x = torch.empty(prod(shape))
        for begin in range(0, len(x), PIECE):
            part = x[begin : begin + PIECE]
            bits = self.raw(len(part)).view("<u2").astype(np.int32).reshape(-1, 4)
            sums = bits[:, 0] + bits[:, 1] + bits[:, 2] + bits[:, 3]
            part.copy_(torch.from_numpy((sums - MIDDLE) / DEVIATION))
        x = x.view(shape)
        if outliers:
            x[..., 5::32] *= 30
        return x.bfloat16().float()

    def uniform(self, low: float, high: float, *shape: int) -> Tensor:
        """Float32 numbers, not on BF16's grid: for what stays in float32."""
        share = torch.from_numpy((self.raw(*shape) >> np.uint64(40)).astype(np.float64) / 2**24)
        return (low + (high - low) * share).float()

    def integers(self, low: int, high: int, *shape: int) -> Tensor:
        """From low to high - 1."""
        found = (self.raw(*shape) % np.uint64(high - low)).astype(np.int64) + low
        return torch.from_numpy(np.asarray(found))

    def order(self, count: int, rows: int = 1) -> Tensor:
        """(rows, count) permutations."""
        return torch.from_numpy(self.raw(rows, count).argsort(-1, kind="stable"))

    def weight(self, *shape: int) -> Tensor:
        """A plain weight (..., N, R), such that products keep the size of the activations."""
        return (self.normal(*shape) / sqrt(shape[-1])).bfloat16().float()

    def codes(self, *shape: int, kind: torch.dtype) -> Tensor:
        """FP8 or INT8 of a bell shape over the whole range."""
        x = (self.normal(*shape) * 40).clamp(-127, 127)
        return x.round().to(kind) if kind == INT8 else x.to(kind)

    def every_code(self, *shape: int) -> Tensor:
        """FP8 with all bit patterns alike often, but NaN's: 0, -0, subnormals and 448 too."""
        codes = self.integers(0, 254, *shape)
        codes = torch.where(codes >= 127, codes + 1, codes)  # 0x7f and 0xff are NaN
        return codes.to(torch.uint8).view(FP8)

    def scales(self, *shape: int, block: tuple[int, int] | None = None) -> Tensor:
        """Of codes of a shape (..., N, R), spread over a factor of 8, so that a scale in the wrong
        place shows."""
        *stack, n, r = shape
        rows, columns = block or (1, r)
        found = self.uniform(1, 8, *stack, -(-n // rows), -(-r // columns))
        return found / sqrt(r) / 160


def normal(*shape: int, seed: int = 0, outliers: bool = False) -> Tensor:
    return Source(seed).normal(*shape, outliers=outliers)


def weight(*shape: int, dtype: torch.dtype, seed: int = 1) -> Weight:
    return Weight(Source(seed).weight(*shape).to(dtype), dtype)


def quantised(
    *shape: int,
    dtype: torch.dtype,
    kind: torch.dtype,
    block: tuple[int, int] | None = None,
    dynamic: bool = False,
    seed: int = 1,
) -> Weight:
    source = Source(seed)
    data = source.codes(*shape, kind=kind)
    return Weight(data, dtype, source.scales(*shape, block=block), block, dynamic)


def on(ops: Ops, w: Weight) -> Weight:
    """A weight as the checkpoint holds it, in the backend's memory."""
    scale = None if w.scale is None else w.scale.to(ops.device)
    return replace(w, data=w.data.to(ops.device), scale=scale)


def unambiguous(x_TR: Tensor) -> Tensor:
    """x with the largest of each row at 251/256 of a power of two.

    251 is a prime. Scaled so that the largest is 448 or 127, no other number of 8 bits then lies
    on or near the middle between two codes: whoever quantises the row fairly gets the same codes,
    in whatever precision and order he divides.
    """
    magnitude = x_TR.abs()
    place = magnitude.argmax(-1, keepdim=True)
    top = magnitude.gather(-1, place)
    power = torch.frexp(top)[1]
    fixed = torch.ldexp(torch.full_like(top, 251 / 256), power)
    fixed = torch.where(fixed < top, fixed * 2, fixed)
    return torch.where(top > 0, x_TR.scatter(-1, place, fixed), x_TR)


def choices(tokens: int, kind: str, e: int, k: int, source: Source | None = None) -> Tensor:
    """Which experts each token takes: spread, crowded onto a few, or the same for all; or on
    three ranks of e experts each, of which this one is the second ("parallel")."""
    source = source or Source(tokens)
    pool = {"spread": e, "crowded": k + 1, "same": k, "parallel": 3 * e}[kind]
    picks = source.order(pool, tokens)[:, :k]
    if kind == "parallel":
        picks = picks - e
    return (e - 1 - picks).to(torch.int32)


def powers_of_two(exponents: Tensor) -> Tensor:
    """One number a row, to multiply rows by."""
    return torch.ldexp(torch.ones(len(exponents)), exponents.round()).unsqueeze(1)
