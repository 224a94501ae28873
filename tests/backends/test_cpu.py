"""The CPU backend against the reference in float64, by the rule of `verify.metrics`."""

from collections.abc import Callable
from dataclasses import replace
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from glm_portable.backends import cpu, reference
from glm_portable.backends.cpu import native
from glm_portable.ops import KVCache, Step, Weight
from glm_portable.verify.cases import CASES, Case, cost
from glm_portable.verify.cases.data import choices, normal, quantised, weight

DTYPES = [torch.float32, torch.bfloat16]


def verdict(case: Case, dtype: torch.dtype, backend: Any = cpu) -> list[str]:
    return list(case.findings(backend, dtype))


@pytest.mark.parametrize(
    ("case", "dtype"),
    [
        pytest.param(case, dtype, id=f"{case}-{dtype}")
        for case in CASES
        for dtype in DTYPES
        if not (case.rounds_within and dtype == torch.float32)
    ],
)
def test_errs_no_more_than_twice_as_much_as_plain_pytorch(case: Case, dtype: torch.dtype) -> None:
    assert verdict(case, dtype) == []


AFFORDED = 20_000_000
"""Multiplications: float16 is slow on processors without it."""


def test_float64_and_float16_run_without_onednn() -> None:
    for dtype in (torch.float64, torch.float16):
        for case in CASES:
            beyond = dtype == torch.float16 and "of every size" in case.name
            products = case.op in ("linear", "experts", "attend") and cost(case.call()) < AFFORDED
            if products and not case.rounds_within and not beyond:
                assert verdict(case, dtype) == [], case


# What a broken op looks like. Each must make a case of that op fail.


def scaled(op: Callable[..., Any], factor: float) -> Callable[..., Any]:
    def broken(*args: Any, **kwargs: Any) -> Any:
        result = op(*args, **kwargs)
        return tuple(r * factor for r in result) if isinstance(result, tuple) else result * factor

    return broken


def route_in_bf16(x_TD: Tensor, gate_ED: Tensor, bias_E: Tensor, cfg: Any) -> Any:
    return reference.route(x_TD, gate_ED, bias_E.bfloat16().to(bias_E.dtype), cfg)


def route_by_biased_weight(x_TD: Tensor, gate_ED: Tensor, bias_E: Tensor, cfg: Any) -> Any:
    _, experts = reference.route(x_TD, gate_ED, bias_E, cfg)
    scores = torch.sigmoid(x_TD.to(gate_ED.dtype) @ gate_ED.T) + bias_E
    weights = scores.gather(1, experts.long())
    return weights / weights.sum(-1, keepdim=True) * cfg.routed_scaling_factor, experts


def drop_an_expert(x: Tensor, gate_up: Weight, down: Weight, weights: Tensor, ids: Tensor) -> Any:
    return cpu.experts(x, gate_up, down, weights * (ids != ids.max()), ids)


def round_the_weights(
    x: Tensor, gate_up: Weight, down: Weight, weights: Tensor, ids: Tensor
) -> Any:
    return cpu.experts(x, gate_up, down, (weights * 16).round() / 16, ids)


def swap_gate_and_up(w: Weight) -> Weight:
    if w.data.dim() == 2 or w.data.shape[-2] == 192:  # no gate_up of the cases is 192 wide
        return cpu.pack(w)
    return cpu.pack(replace(w, data=w.data.roll(w.data.shape[-2] // 2, -2)))


def rope_off_by_one(
    q: Tensor, k: Tensor, v: Tensor, cos: Tensor, sin: Tensor, *rest: Any
) -> Tensor:
    return cpu.rope_store(q, k, v, cos.roll(1, 0), sin.roll(1, 0), *rest)


def rope_interleaved(
    q: Tensor, k: Tensor, v: Tensor, cos: Tensor, sin: Tensor, *rest: Any
) -> Tensor:
    half = cos.shape[-1] // 2
    cos, sin = (a[..., :half].repeat_interleave(2, -1) for a in (cos, sin))
    return cpu.rope_store(q, k, v, cos, sin, *rest)


def store_unrotated_keys(
    q: Tensor, k: Tensor, v: Tensor, cos: Tensor, sin: Tensor, *rest: Any
) -> Tensor:
    q = cpu.rope_store(q, k, v, cos, sin, *rest)
    reference.store(k, v, rest[0], rest[1])
    return q


def store_one_slot_on(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cos: Tensor,
    sin: Tensor,
    cache: KVCache,
    step: Step,
    *rest: Any,
) -> Tensor:
    return cpu.rope_store(
        q, k, v, cos, sin, cache, replace(step, slots_T=step.slots_T ^ 1), *rest
    )  # fmt: skip


def pack_unscaled(w: Weight) -> Weight:
    return cpu.pack(replace(w, scale=None, block=None))


def pack_with_mean_scale(w: Weight) -> Weight:
    return cpu.pack(
        w if w.scale is None else replace(w, scale=w.scale.mean().expand(w.scale.shape))
    )


def forget_the_bias(x_TR: Tensor, w: Weight, bias_N: Tensor | None = None) -> Tensor:
    return cpu.linear(x_TR, w)


def read_a_stale_page(q: Tensor, cache: KVCache, step: Step, scale: float) -> Tensor:
    table = step.block_table_BP.clone()
    table[:, 1] = table[:, 0]
    return cpu.attend(q, cache, replace(step, block_table_BP=table), scale)


def miss_the_newest_key(q: Tensor, cache: KVCache, step: Step, scale: float) -> Tensor:
    lengths = tuple(max(1, n - 1) for n in step.kv_lengths)
    return cpu.attend(q, cache, replace(step, kv_lengths=lengths), scale)


def forget_the_scale(q: Tensor, cache: KVCache, step: Step, scale: float) -> Tensor:
    return cpu.attend(q, cache, step, 1.0)


def norm_without_residual(x: Tensor, w: Tensor, eps: float, residual: Tensor | None = None) -> Any:
    return cpu.rms_norm(x, w, eps)[0], cpu.rms_norm(x, w, eps, residual)[1]


def norm_without_weight(x: Tensor, w: Tensor, eps: float, residual: Tensor | None = None) -> Any:
    return cpu.rms_norm(x, torch.ones_like(w), eps, residual)


def norm_without_epsilon(x: Tensor, w: Tensor, eps: float, residual: Tensor | None = None) -> Any:
    return cpu.rms_norm(x, w, 0.0, residual)


OPS = ["linear", "experts", "attend", "rms_norm", "rope_store", "silu_mul", "route"]
FAULTS: list[tuple[str, str, Callable[..., Any]]] = [
    *((op, f"times {factor}", scaled(getattr(cpu, op), factor))
      for op in OPS if op != "route" for factor in (0.0, 2.0, 0.5, -1.0, 1.01)),
    ("route", "bias in BF16", route_in_bf16),
    ("route", "weights from biased scores", route_by_biased_weight),
    ("experts", "one expert dropped", drop_an_expert),
    ("experts", "weights rounded", round_the_weights),
    ("pack", "gate and up swapped", swap_gate_and_up),
    ("rope_store", "off by one", rope_off_by_one),
    ("rope_store", "interleaved", rope_interleaved),
    ("rope_store", "unrotated keys", store_unrotated_keys),
    ("rope_store", "wrong slots", store_one_slot_on),
    ("pack", "fp8 not scaled", pack_unscaled),
    ("pack", "one scale for all channels", pack_with_mean_scale),
    ("linear", "bias forgotten", forget_the_bias),
    ("attend", "stale page", read_a_stale_page),
    ("attend", "newest key missed", miss_the_newest_key),
    ("attend", "scale forgotten", forget_the_scale),
    ("rms_norm", "residual forgotten", norm_without_residual),
    ("rms_norm", "weight forgotten", norm_without_weight),
    ("rms_norm", "epsilon forgotten", norm_without_epsilon),
]  # fmt: skip


def broken_backend(op: str, body: Callable[..., Any]) -> ModuleType:
    module = ModuleType("broken")
    vars(module).update({name: getattr(cpu, name) for name in cpu.__all__})
    setattr(module, op, body)
    return module


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("op", "what", "body"), FAULTS, ids=[f"{o}: {w}" for o, w, _ in FAULTS])
def test_a_broken_op_is_noticed(
    op: str, what: str, body: Callable[..., Any], dtype: torch.dtype
) -> None:
    backend = broken_backend(op, body)
    affected = ("linear", "experts") if op == "pack" else (op,)
    assert any(verdict(case, dtype, backend) for case in CASES if case.op in affected)


def test_zeroed_weights_of_the_router_are_noticed() -> None:
    def silent(*args: Any) -> Any:
        weights, experts = cpu.route(*args)
        return weights * 0, experts

    backend = broken_backend("route", silent)
    assert any(verdict(case, torch.bfloat16, backend) for case in CASES if case.op == "route")


# What the rule does not say


def test_pack_keeps_one_copy_of_a_weight() -> None:
    packed = cpu.pack(weight(64, 32, dtype=torch.bfloat16))
    assert packed.data.is_meta and packed.scale is None
    stacked = cpu.pack(quantised(4, 64, 32, dtype=torch.bfloat16, kind=torch.float8_e4m3fn))
    assert stacked.data.is_meta and stacked.scale is None and len(stacked.packed) == 4


def test_pack_does_not_alias_a_weight_that_something_else_uses() -> None:
    for dtype in (torch.float32, torch.float64):
        w = weight(8, 4, dtype=dtype)
        packed, x = cpu.pack(w), torch.eye(4, dtype=dtype)
        before = cpu.linear(x, packed)
        w.data.zero_()
        assert torch.equal(cpu.linear(x, packed), before)


def poisoned(w: Weight, keep: set[int]) -> Weight:
    """With NaN or nothing in place of all other experts."""
    if isinstance(w.packed, native.Matrices):
        data = w.packed.data.clone()
        data[[e for e in range(len(data)) if e not in keep]] = torch.nan
        return replace(w, packed=replace(w.packed, data=data))
    return replace(w, packed={e: m for e, m in enumerate(w.packed) if e in keep})


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_only_the_chosen_experts_are_touched(dtype: torch.dtype) -> None:
    gate_up, down = (cpu.pack(weight(16, *s, dtype=dtype)) for s in ((64, 32), (32, 32)))
    chosen = choices(6, "crowded", 16, 4)
    only = [poisoned(w, set(chosen.flatten().tolist())) for w in (gate_up, down)]
    x, weights = normal(6, 32).to(dtype), torch.ones(6, 4)
    got = cpu.experts(x, only[0], only[1], weights, chosen)
    assert torch.equal(got, cpu.experts(x, gate_up, down, weights, chosen))


def test_neighbours_do_not_change_an_attended_row() -> None:
    cache = KVCache(normal(8, 8, 2, 16).bfloat16(), normal(8, 8, 2, 16, seed=1).bfloat16())
    q = normal(3, 4, 16, seed=2).bfloat16()
    together = Step.build([(20, 1, [1, 2, 3]), (5, 1, [4]), (30, 1, [7, 6, 5, 0])], 8, cpu.device)
    alone = Step.build([(20, 1, [1, 2, 3])], 8, cpu.device)
    both = cpu.attend(q, cache, together, 0.25)
    assert torch.allclose(both[:1], cpu.attend(q[:1], cache, alone, 0.25), rtol=2**-8, atol=0)
