"""The routed mixture: empty and crowded experts, shards by width and by number, FP8 and INT8."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from glm_portable.verify.call import Call, Tensors
from glm_portable.verify.cases.case import Case
from glm_portable.verify.cases.data import FP8, INT8, Source, choices, powers_of_two
from glm_portable.verify.cases.linear import B128, Block, attributes

Make = Callable[[Source], Call]


def mixture(
    tokens: int,
    kind: str = "spread",
    f: int = 88,
    outliers: bool = False,
    code: torch.dtype | None = None,
    block: Block = None,
    dynamic: bool = True,
    sizes: tuple[int, int, int] = (192, 16, 4),
    change: Callable[[dict[str, Tensor]], None] = lambda tensors: None,
) -> Make:
    """sizes: hidden size, experts, experts a token. code: what the weights are stored in."""

    def make(source: Source) -> Call:
        d, e, k = sizes
        tensors: dict[str, Tensor] = {"x": source.normal(tokens, d, outliers=outliers)}
        tensors |= weights(source, "gate_up", (e, 2 * f, d), code, block)
        tensors |= weights(source, "down", (e, d, f), code, block)
        tensors["weights"] = source.uniform(0.1, 1.1, tokens, k)
        tensors["experts"] = choices(tokens, kind, e, k, source)
        change(tensors)
        return Call("experts", tensors, {} if code is None else attributes(block, dynamic))

    return make


def weights(
    source: Source, name: str, shape: tuple[int, int, int], code: torch.dtype | None, block: Block
) -> Tensors:
    if code is None:
        return {name: source.weight(*shape)}
    return {
        name: source.codes(*shape, kind=code),
        f"{name}_scale": source.scales(*shape, block=block),
    }


def one_is_nan(tensors: dict[str, Tensor]) -> None:
    tensors["x"][1, 2] = torch.nan


def unused_is_nan(tensors: dict[str, Tensor]) -> None:
    """Of the experts that no token takes; they must not even be multiplied by 0."""
    count = len(tensors["gate_up"])
    unused = sorted(set(range(count)) - set(tensors["experts"].flatten().tolist()))
    tensors["gate_up"][unused] = torch.nan
    tensors["down"][unused] = torch.inf


def scaled_up(tensors: dict[str, Tensor]) -> None:
    """Weights as a factor of 2.5 leaves them, some of them 0."""
    tensors["weights"] *= 2.5
    tensors["weights"][::3, 0] = 0


def every_size(tensors: dict[str, Tensor]) -> None:
    tensors["x"] *= powers_of_two(torch.arange(len(tensors["x"])) % 17 - 8.0)


fp8 = partial(mixture, code=FP8)

REAL = [
    ("GLM-4.5, EP8 x TP8", (5120, 20, 8), 192), ("Air, EP8 x TP8", (4096, 16, 8), 176),
    ("Air, EP8 x TP4", (4096, 16, 8), 352), ("GLM-4.5, EP16", (5120, 10, 8), 1536),
]  # fmt: skip

CASES = [
    Case("experts", "one token", mixture(1)),
    Case("experts", "4 tokens", mixture(4)),
    Case("experts", "16 tokens", mixture(16)),
    Case("experts", "17 tokens, width 96", mixture(17, f=96)),
    Case("experts", "33 tokens, width 176", mixture(33, f=176)),
    Case("experts", "4 tokens, width 192", mixture(4, f=192, sizes=(96, 8, 2))),
    Case("experts", "4 tokens, width 352", mixture(4, f=352, sizes=(96, 8, 2))),
    Case("experts", "2049 tokens", mixture(2049, f=32, sizes=(64, 8, 2))),
    Case("experts", "most experts empty", mixture(2, f=32, sizes=(64, 160, 8))),
    Case("experts", "crowded", mixture(33, "crowded")),
    Case("experts", "all tokens alike", mixture(9, "same")),
    Case("experts", "one expert for all", mixture(33, "same", sizes=(192, 16, 1))),
    Case("experts", "expert parallel", mixture(33, "parallel")),
    Case("experts", "expert parallel, one token", mixture(1, "parallel")),
    Case("experts", "expert parallel, fp8", fp8(17, "parallel"), True),
    Case("experts", "expert parallel, int8", mixture(17, "parallel", code=INT8), True),
    Case("experts", "outlier channels", mixture(17, outliers=True)),
    Case("experts", "tokens of every size", mixture(17, change=every_size)),
    Case("experts", "large weights and zeros", mixture(9, change=scaled_up)),
    Case("experts", "one token is NaN", mixture(5, change=one_is_nan)),
    Case("experts", "unused experts are NaN", mixture(3, change=unused_is_nan)),
    Case("experts", "fp8, dynamic activations, one token", fp8(1), True),
    Case("experts", "fp8, dynamic activations", fp8(17), True),
    Case("experts", "fp8 weights alone", fp8(5, dynamic=False)),
    Case("experts", "fp8 blocks with rests", fp8(5, f=176, block=B128, dynamic=False)),
    Case("experts", "fp8 blocks with rests, dynamic activations", fp8(5, f=176, block=B128), True),
    Case("experts", "int8, dynamic activations", mixture(17, code=INT8), True),
    Case("experts", "int8, dynamic activations, width 128", mixture(17, f=128, code=INT8), True),
    Case("experts", "int8 weights alone", mixture(5, code=INT8, dynamic=False)),
    *(Case("experts", f"{name}, {label}", mixture(t, f=f, sizes=sizes, code=code), code is not None,
           full=True)
      for name, sizes, f in REAL
      for t, label, code in ((17, "bf16", None), (64, "fp8", FP8), (17, "w8a8", INT8))),
]  # fmt: skip
