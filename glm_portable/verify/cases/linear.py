"""Dense layers: widths of tensor-parallel shards, outliers, FP8 and INT8 of every kind."""

from collections.abc import Callable

import torch
from torch import Tensor

from glm_portable.verify.call import Call
from glm_portable.verify.cases.case import Case
from glm_portable.verify.cases.data import FP8, INT8, Source, powers_of_two, unambiguous

Make = Callable[[Source], Call]
Block = tuple[int, int] | None
B128 = (128, 128)


def plain(
    t: int,
    n: int,
    r: int,
    bias: bool = False,
    outliers: bool = False,
    change: Callable[[Tensor], Tensor] = lambda x: x,
) -> Make:
    def make(source: Source) -> Call:
        x, w = source.normal(t, r, outliers=outliers), source.weight(n, r)
        extra = {"bias": source.normal(n)} if bias else {}
        return Call("linear", {"x": change(x), "w": w, **extra})

    return make


def coded(
    t: int,
    kind: torch.dtype,
    block: Block = None,
    dynamic: bool = False,
    shape: tuple[int, int] = (176, 192),
    change: Callable[[Tensor], Tensor] = unambiguous,
    bias: bool = False,
) -> Make:
    def make(source: Source) -> Call:
        codes = source.codes(*shape, kind=kind)
        scale = source.scales(*shape, block=block)
        x = change(source.normal(t, shape[1], outliers=True))
        tensors = {"x": x, "w": codes, "w_scale": scale}
        if bias:
            tensors["bias"] = source.normal(shape[0])
        return Call("linear", tensors, attributes(block, dynamic))

    return make


def extremes(block: Block, dynamic: bool) -> Make:
    """Every FP8 number there is, on scales that are powers of two from 2^-16 to 2^-5."""

    def make(source: Source) -> Call:
        codes = source.every_code(96, 256)
        height, width = (96, 1) if block is None else (-(-96 // block[0]), -(-256 // block[1]))
        powers = source.integers(-16, -4, height, width)
        scale = torch.ldexp(torch.ones(height, width), powers)
        x = unambiguous(source.normal(5, 256))
        return Call("linear", {"x": x, "w": codes, "w_scale": scale}, attributes(block, dynamic))

    return make


def attributes(block: Block, dynamic: bool) -> dict[str, object]:
    return {"block": None if block is None else list(block), "dynamic_activations": dynamic}


def every_size(x: Tensor) -> Tensor:
    """Rows from 2^-20 to 2^20."""
    return x * powers_of_two(torch.linspace(-20, 20, len(x)))


def hostile_rows(x: Tensor) -> Tensor:
    """A row of zeros, one of numbers too small for FP8 but for one, one of equal numbers."""
    x = unambiguous(x)
    x[0] = 0
    x[1, 1:] *= 2.0**-12
    x[2] = 251 / 256
    return x


def not_finite(x: Tensor) -> Tensor:
    x[1, 3], x[3, 0], x[4, -1] = torch.nan, torch.inf, -torch.inf
    return x


def sized(t: int, n: int, r: int, kind: torch.dtype | None = None, block: Block = None) -> Make:
    return plain(t, n, r) if kind is None else coded(t, kind, block, True, (n, r))


REAL = [
    ("GLM-4.5 qkv, TP8", 1792, 5120), ("GLM-4.5 output, TP8", 5120, 1536),
    ("GLM-4.5 dense up, TP8", 3072, 5120), ("Air dense up, TP8", 2736, 4096),
    ("Air dense down, TP8", 4096, 1368), ("Air dense down, TP4", 4096, 2736),
    ("Air shared up, TP8", 352, 4096), ("GLM-4.5 head, TP8", 18944, 5120),
]  # fmt: skip

CASES = [
    Case("linear", "one token, 192 to 176", plain(1, 176, 192)),
    Case("linear", "one token, bias", plain(1, 96, 352, True)),
    Case("linear", "16 tokens, 88 to 192", plain(16, 192, 88)),
    Case("linear", "17 tokens, 704 to 192, bias", plain(17, 192, 704, True)),
    Case("linear", "17 tokens, 1368 to 96", plain(17, 96, 1368)),
    Case("linear", "2049 tokens", plain(2049, 64, 64, True)),
    Case("linear", "outlier channels", plain(33, 352, 192, outliers=True)),
    Case("linear", "odd widths", plain(3, 37, 51, True)),
    Case("linear", "rows of every size", plain(17, 64, 96, change=every_size)),
    Case("linear", "NaN and infinities", plain(6, 64, 96, change=not_finite)),
    Case("linear", "fp8 per channel", coded(5, FP8)),
    Case("linear", "fp8 per channel, bias", coded(17, FP8, bias=True)),
    Case("linear", "fp8 blocks with a rest", coded(5, FP8, B128)),
    Case("linear", "fp8 blocks, dynamic activations", coded(5, FP8, B128, True, (192, 352))),
    Case("linear", "fp8, dynamic activations", coded(5, FP8, None, True)),
    Case("linear", "fp8, dynamic activations, 1368 columns", coded(3, FP8, None, True, (64, 1368))),
    Case("linear", "fp8, dynamic activations, odd height", coded(3, FP8, None, True, (40, 72))),
    Case("linear", "fp8, dynamic activations, hostile rows",
         coded(5, FP8, None, True, change=hostile_rows)),
    Case("linear", "fp8 of every code", extremes(None, False)),
    Case("linear", "fp8 of every code, blocks", extremes(B128, False)),
    Case("linear", "fp8 of every code, dynamic activations", extremes(None, True)),
    Case("linear", "int8 per channel", coded(1, INT8)),
    Case("linear", "int8 blocks with a rest", coded(5, INT8, (64, 128), False)),
    Case("linear", "int8, dynamic activations", coded(5, INT8, None, True)),
    Case("linear", "int8, dynamic activations, bias", coded(17, INT8, None, True, bias=True)),
    Case("linear", "int8, dynamic activations, hostile rows",
         coded(5, INT8, None, True, change=hostile_rows)),
    *(Case("linear", f"{name}, {label}", sized(t, n, r, kind), full=True)
      for name, n, r in REAL
      for t, label, kind in ((1, "one token", None), (17, "fp8", FP8), (17, "w8a8", INT8))),
]  # fmt: skip
