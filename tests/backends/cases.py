"""Inputs that real models and their bugs have: what to run an op on when judging a backend.

Every number is one that BF16 holds, so one case runs in float64, float32 and BF16 on equal inputs.
Uniform noise alone would not do: outlier channels, large router biases, crowded and empty experts,
widths that are no power of two and pages out of order are where implementations went wrong.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from glm_portable.config import ModelConfig
from glm_portable.ops import KVCache, Ops, Step, Weight
from tests.random_checkpoint import small_config

FP8, INT8 = torch.float8_e4m3fn, torch.int8


@dataclass(frozen=True)
class Case:
    """`run` makes its own inputs in a dtype, and gives the op's result as one tensor.

    rounds_within: values that were computed are rounded to FP8 or INT8 on the way. In float32 the
    order of a sum decides which side of a tie one falls on, and then differs by a whole code: no
    multiple of plain PyTorch's error is a bound, and the case says something in BF16 alone.
    """

    op: str
    name: str
    run: Callable[[Ops, torch.dtype], Tensor]
    rounds_within: bool = False

    def __str__(self) -> str:
        return f"{self.op}: {self.name}"


def normal(*shape: int, seed: int = 0, outliers: bool = False) -> Tensor:
    """Numbers on BF16's grid; with `outliers`, one column in 32 is 30 times as large."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    if outliers:
        x[..., 5::32] *= 30
    return x.bfloat16().float()


def weight(*shape: int, dtype: torch.dtype, seed: int = 1) -> Weight:
    return Weight((normal(*shape, seed=seed) * shape[-1] ** -0.5).bfloat16().to(dtype), dtype)


def quantised(
    *shape: int,
    dtype: torch.dtype,
    kind: torch.dtype,
    block: tuple[int, int] | None = None,
    dynamic: bool = False,
    seed: int = 1,
) -> Weight:
    """Scales spread over a factor of 8, so that a scale in the wrong place shows."""
    *stack, n, r = shape
    data = (normal(*shape, seed=seed) * 40).clamp(-127, 127).to(kind)
    rows, columns = block or (1, r)
    g = torch.Generator().manual_seed(seed)
    scale = torch.rand((*stack, -(-n // rows), -(-r // columns)), generator=g)
    return Weight(data, dtype, (scale * 7 + 1) * r**-0.5 / 160, block, dynamic)


def on(ops: Ops, w: Weight) -> Weight:
    """A weight as the checkpoint holds it, in the backend's memory."""
    scale = None if w.scale is None else w.scale.to(ops.device)
    return replace(w, data=w.data.to(ops.device), scale=scale)


def linear_cases() -> list[Case]:
    def plain(t: int, n: int, r: int, bias: bool, outliers: bool) -> Callable[..., Tensor]:
        def run(ops: Ops, dtype: torch.dtype) -> Tensor:
            x = normal(t, r, outliers=outliers).to(ops.device, dtype)
            w = ops.pack(on(ops, weight(n, r, dtype=dtype)))
            return ops.linear(x, w, normal(n, seed=2).to(ops.device, dtype) if bias else None)

        return run

    def coded(
        t: int, kind: torch.dtype, block: tuple[int, int] | None, dynamic: bool
    ) -> Callable[..., Tensor]:
        def run(ops: Ops, dtype: torch.dtype) -> Tensor:
            w = quantised(176, 192, dtype=dtype, kind=kind, block=block, dynamic=dynamic)
            return ops.linear(normal(t, 192).to(ops.device, dtype), ops.pack(on(ops, w)))

        return run

    return [
        Case("linear", "one token, 192 to 176", plain(1, 176, 192, False, False)),
        Case("linear", "one token, bias", plain(1, 96, 352, True, False)),
        Case("linear", "17 tokens, 704 to 192, bias", plain(17, 192, 704, True, False)),
        Case("linear", "outlier channels", plain(33, 352, 192, False, True)),
        Case("linear", "odd widths", plain(3, 37, 51, True, False)),
        Case("linear", "fp8 per channel", coded(5, FP8, None, False)),
        Case("linear", "fp8 blocks with a rest", coded(5, FP8, (128, 128), False)),
        Case("linear", "fp8, dynamic activations", coded(5, FP8, None, True)),
        Case("linear", "int8 per channel", coded(1, INT8, None, False)),
        Case("linear", "int8, dynamic activations", coded(5, INT8, None, True)),
    ]


def choices(tokens: int, kind: str, e: int, k: int) -> Tensor:
    """Which experts each token takes: spread, crowded onto a few, or the same for all; or on
    three ranks of e experts each, of which this one is the second ("parallel")."""
    g = torch.Generator().manual_seed(tokens)
    pool = {"spread": e, "crowded": k + 1, "same": k, "parallel": 3 * e}[kind]
    picks = torch.stack([torch.randperm(pool, generator=g)[:k] for _ in range(tokens)])
    if kind == "parallel":
        picks -= e
    return (e - 1 - picks).to(torch.int32)


def expert_cases() -> list[Case]:
    def case(
        tokens: int, kind: str, f: int = 88, outliers: bool = False, code: torch.dtype | None = None
    ) -> Callable[..., Tensor]:
        def run(ops: Ops, dtype: torch.dtype) -> Tensor:
            d, e, k = 192, 16, 4
            g = torch.Generator().manual_seed(3)
            weights = torch.rand(tokens, k, generator=g) + 0.1
            shapes = ((e, 2 * f, d), (e, d, f))
            if code is None:
                packed = [weight(*s, dtype=dtype, seed=i) for i, s in enumerate(shapes)]
            else:
                packed = [
                    quantised(*s, dtype=dtype, kind=code, dynamic=True, seed=i)
                    for i, s in enumerate(shapes)
                ]
            gate_up, down = (ops.pack(on(ops, w)) for w in packed)
            x = normal(tokens, d, outliers=outliers).to(ops.device, dtype)
            scale = weights.to(ops.device, torch.promote_types(dtype, torch.float32))
            picks = choices(tokens, kind, e, k).to(ops.device)
            return ops.experts(x, gate_up, down, scale, picks)

        return run

    return [
        Case("experts", "one token", case(1, "spread")),
        Case("experts", "4 tokens", case(4, "spread")),
        Case("experts", "16 tokens", case(16, "spread")),
        Case("experts", "33 tokens, width 176", case(33, "spread", f=176)),
        Case("experts", "crowded", case(33, "crowded")),
        Case("experts", "all tokens alike", case(9, "same")),
        Case("experts", "expert parallel", case(33, "parallel")),
        Case("experts", "expert parallel, one token", case(1, "parallel")),
        Case("experts", "expert parallel, fp8", case(17, "parallel", code=FP8), True),
        Case("experts", "outlier channels", case(17, "spread", outliers=True)),
        Case("experts", "fp8, dynamic activations, one token", case(1, "spread", code=FP8), True),
        Case("experts", "fp8, dynamic activations", case(17, "spread", code=FP8), True),
        Case("experts", "int8, dynamic activations", case(17, "spread", code=INT8), True),
    ]


# (cached tokens, new tokens, pages) per sequence, 8 slots a page
STEPS: dict[str, list[tuple[int, int, list[int]]]] = {
    "decode of one": [(20, 1, [3, 1, 2])],
    "first token": [(0, 1, [5])],
    "decode of unequal lengths": [
        (70, 1, [9, 2, 4, 1, 0, 11, 30, 22, 17]),
        (7, 1, [3]),
        (8, 1, [5, 6]),
        (3, 1, [7]),
        (64, 1, [31, 29, 27, 25, 23, 21, 19, 15, 13]),
    ],
    "prefill": [(0, 100, [12, 3, 8, 1, 30, 2, 4, 9, 5, 6, 7, 0, 10])],
    "mixed": [
        (0, 70, [14, 2, 4, 6, 8, 10, 12, 1, 3]),
        (23, 1, [5, 7, 9]),
        (10, 3, [11, 13]),
        (30, 3, [15, 16, 17, 18, 19]),
        (40, 73, [31, 30, 29, 28, 27, 26, 25, 24, 23, 22, 21, 20, 0, 32, 33]),
    ],
    "nine queries": [(15, 9, [3, 4, 5])],
}


def attend_cases() -> list[Case]:
    def case(name: str, heads: int, groups: int, sharp: float) -> Callable[..., Tensor]:
        def run(ops: Ops, dtype: torch.dtype) -> Tensor:
            step = Step.build(STEPS[name], 8, ops.device)
            tokens, c = step.query_ends[-1], 32
            cache = KVCache(
                normal(34, 8, groups, c, seed=1).to(ops.device, dtype),
                normal(34, 8, groups, c, seed=2).to(ops.device, dtype),
            )
            k, v = (normal(tokens, groups, c, seed=s).to(ops.device, dtype) for s in (3, 4))
            q = (normal(tokens, heads, c, seed=5) * sharp).to(ops.device, dtype)
            still = torch.zeros(tokens, c // 2, dtype=dtype, device=ops.device)
            q = ops.rope_store(q, k, v, still + 1, still, cache, step)
            return ops.attend(q, cache, step, c**-0.5)

        return run

    return [
        *(Case("attend", name, case(name, 12, 2, 1.0)) for name in STEPS),
        Case("attend", "sharp scores", case("mixed", 4, 4, 8.0)),
        Case("attend", "12 query heads a group", case("mixed", 24, 2, 1.0)),
    ]


def norm_cases() -> list[Case]:
    def norm(residual: bool, size: float) -> Callable[..., Tensor]:
        def run(ops: Ops, dtype: torch.dtype) -> Tensor:
            x = (normal(9, 192, outliers=True) * size).to(ops.device, dtype)
            w = (1 + normal(192, seed=1) / 8).bfloat16().to(ops.device, dtype)
            r = normal(9, 192, seed=2).to(ops.device, dtype) if residual else None
            return torch.cat(ops.rms_norm(x, w, 1e-5, r))

        return run

    def rope(rotary: int, with_norm: bool) -> Callable[..., Tensor]:
        def run(ops: Ops, dtype: torch.dtype) -> Tensor:
            positions = torch.tensor([0, 1, 2, 77, 4096, 131071], dtype=torch.float64)
            angles = positions.unsqueeze(1) * 1e6 ** (-torch.arange(0, rotary, 2) / rotary)
            angles = torch.cat([angles, angles], -1)
            cos, sin = (a.bfloat16().to(ops.device, dtype) for a in (angles.cos(), angles.sin()))
            q, k, v = (normal(6, n, 64, seed=n).to(ops.device, dtype) for n in (12, 2, 2))
            w, u = ((1 + normal(64, seed=s) / 8).bfloat16().to(ops.device, dtype) for s in (2, 3))
            step = Step.build([(4, 2, [3, 1]), (0, 4, [0])], 4, ops.device)
            pages = [normal(4, 4, 2, 64, seed=s).to(ops.device, dtype) for s in (4, 5)]
            cache = KVCache(pages[0], pages[1])
            norms = (w, u, 1e-5) if with_norm else ()
            q = ops.rope_store(q, k, v, cos, sin, cache, step, *norms)
            return torch.cat([x.flatten() for x in (q, cache.k_PSGC, cache.v_PSGC)])

        return run

    def gate(ops: Ops, dtype: torch.dtype) -> Tensor:
        return ops.silu_mul((normal(9, 352) * 4).to(ops.device, dtype))

    return [
        Case("rms_norm", "without residual", norm(False, 1.0)),
        Case("rms_norm", "with residual", norm(True, 1.0)),
        Case("rms_norm", "small values", norm(False, 2.0**-10)),
        Case("rope_store", "half a head", rope(32, False)),
        Case("rope_store", "after the norm", rope(32, True)),
        Case("rope_store", "a whole head", rope(64, True)),
        Case("silu_mul", "352 columns", gate),
    ]


def route_cases() -> list[Case]:
    """The result is each expert's weight, dense: a wrong choice and a wrong weight both show."""

    def case(low: float, high: float, **changes: object) -> Callable[..., Tensor]:
        def run(ops: Ops, dtype: torch.dtype) -> Tensor:
            wide = torch.promote_types(dtype, torch.float32)
            cfg = ModelConfig.from_dict(
                small_config(n_routed_experts=64, num_experts_per_tok=8, **changes)
            )
            x = normal(40, 192, outliers=True).to(ops.device, dtype)
            gate = (normal(64, 192, seed=1) * 192**-0.5).to(ops.device, wide)
            g = torch.Generator().manual_seed(2)
            bias = (low + (high - low) * torch.rand(64, generator=g)).to(ops.device, wide)
            weights, experts = ops.route(x, gate, bias, cfg)
            dense = torch.zeros(40, 64, dtype=weights.dtype, device=ops.device)
            return dense.scatter_(1, experts.long(), weights)

        return run

    factor = {"routed_scaling_factor": 2.5}
    return [
        Case("route", "small bias", case(-0.1, 0.1)),
        Case("route", "bias around 7", case(6.8, 7.1, **factor)),
        Case("route", "bias 12 to 35", case(12, 35, **factor)),
        Case("route", "groups", case(6.8, 7.1, n_group=8, topk_group=4, **factor)),
        Case("route", "unnormalised", case(6.8, 7.1, norm_topk_prob=False)),
        Case("route", "ties", case(3, 3)),
    ]


CASES = [
    *linear_cases(),
    *expert_cases(),
    *attend_cases(),
    *norm_cases(),
    *route_cases(),
]
