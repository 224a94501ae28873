"""Every op of the backend on virtual chips, against the reference in float64."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from glm_portable.backends import reference
from glm_portable.backends.ascend import AscendOps
from glm_portable.errors import UsageError
from glm_portable.ops import KVCache, Step
from glm_portable.verify.cases import CASES, STEPS, Case
from glm_portable.verify.cases.data import normal, quantised, weight
from glm_portable.verify.metrics import faults

BF16, FP8 = torch.bfloat16, torch.float8_e4m3fn
FLOATING = ("fp8", "e4m3fn pages", "e4m3fnuz pages")
CODED = [c for c in CASES if any(kind in c.name for kind in FLOATING)]
SMALL = [
    c
    for c in CASES
    if c.op == "attend" and ("pages of 8" in c.name or c.name == "decode of 130 sequences")
]
"""On pages of 8 tokens, fewer than attention takes."""
RUN = [c for c in CASES if c not in CODED and c not in SMALL]

FUSED = {
    "linear": [],
    "experts": ["npu_moe_init_routing_v2", "npu_grouped_matmul", "npu_moe_token_unpermute"],
    "rms_norm": [],
    "rope_store": ["npu_mrope", "npu_scatter_pa_kv_cache"],
    "silu_mul": ["npu_swiglu"],
    "attend": ["npu_fused_infer_attention_score"],
    "route": ["npu_moe_gating_top_k"],
}
NARROW = ("rope_store", "2051 tokens")
"""Its heads have 8 numbers to rotate, and the operator wants 32."""


def ran(ops: AscendOps) -> dict[str, int]:
    return dict(ops.npu._machine.ran)


@pytest.mark.parametrize("ops", ["Ascend910_9391", "Ascend950PR_9599"], indirect=True)
@pytest.mark.parametrize("case", RUN, ids=str)
def test_errs_no_more_than_twice_as_much_as_plain_pytorch(case: Case, ops: AscendOps) -> None:
    assert case.findings(ops, BF16) == ()
    if not (case.op == "route" and "unnormalised" in case.name):
        fused = set(FUSED[case.op]) - ({"npu_mrope"} if (case.op, case.name) == NARROW else set())
        assert fused <= set(ran(ops))
    if case.op == "linear" and case.name == "int8, dynamic activations":
        assert {"npu_dynamic_quant", "npu_quant_matmul", "npu_format_cast"} <= set(ran(ops))


@pytest.mark.parametrize("case", CODED, ids=str)
def test_fp8_is_refused_with_the_choices(case: Case, ops: AscendOps) -> None:
    refusal = f"{ops.chip.name} does not multiply FP8.*BF16.*w8a8|model's type .*, not in"
    with pytest.raises(UsageError, match=refusal):
        case.run(ops, BF16)


@pytest.mark.parametrize("case", SMALL, ids=str)
def test_small_pages_are_refused(case: Case, ops: AscendOps) -> None:
    with pytest.raises(UsageError, match="pages of a multiple of 16 tokens"):
        case.run(ops, BF16)


def test_another_dtype_is_refused(a3: AscendOps) -> None:
    with pytest.raises(UsageError, match="computes in bfloat16, not in torch.float32"):
        a3.pack(weight(4, 4, dtype=torch.float32))


def attend(ops: Any, dtype: torch.dtype, name: str, page: int, size: int, stale: float) -> Tensor:
    """A step of STEPS on pages of another size, every slot that nobody wrote `stale`."""
    heads, groups, count = 12, 2, 40
    fresh = iter(torch.randperm(count, generator=torch.Generator().manual_seed(1)).tolist())
    layout = [
        (start, new, [next(fresh) for _ in range(-(-(start + new) // page))])
        for start, new, _ in STEPS[name]
    ]
    step = Step.build(layout, page, torch.device("cpu"))
    keys = torch.full((count, page, groups, size), stale, dtype=dtype)
    cache = KVCache(keys, keys.clone())
    for seed, full in ((1, cache.k_PSGC), (2, cache.v_PSGC)):
        for start, _, owned in layout:
            for i in range(start):
                row = normal(groups, size, seed=1000 * seed + i).to(dtype)
                full[owned[i // page], i % page] = row
    tokens = step.query_ends[-1]
    k, v = (normal(tokens, groups, size, seed=s).to(dtype) for s in (3, 4))
    q = normal(tokens, heads, size, seed=5).to(dtype)
    still = torch.zeros(tokens, 32, dtype=dtype)
    q = ops.rope_store(q, k, v, still + 1, still, cache, step)
    return torch.as_tensor(ops.attend(q, cache, step, size**-0.5))


@pytest.mark.parametrize("size", [128, 64, 32])
@pytest.mark.parametrize("page", [16, 128])
@pytest.mark.parametrize("name", STEPS)
def test_attention_reads_only_what_was_written(
    name: str, page: int, size: int, a3: AscendOps
) -> None:
    exact = attend(reference, torch.float64, name, page, size, 0.0)
    plain = attend(reference, BF16, name, page, size, 0.0)
    found = attend(a3, BF16, name, page, size, float("nan"))
    assert faults(found, plain, exact) == []
    assert {"npu_scatter_pa_kv_cache", "npu_fused_infer_attention_score"} <= set(ran(a3))


@pytest.mark.parametrize("name", STEPS)
def test_attention_on_every_chip(name: str, ops: AscendOps) -> None:
    exact = attend(reference, torch.float64, name, 128, 128, 0.0)
    plain = attend(reference, BF16, name, 128, 128, 0.0)
    assert faults(attend(ops, BF16, name, 128, 128, float("nan")), plain, exact) == []


@pytest.mark.parametrize(
    ("page", "size", "message"),
    [
        (8, 128, "pages of a multiple of 16 tokens up to 1024, not of 8"),
        (16, 192, "heads of up to 128, not of 192"),
    ],
)
def test_pages_and_heads_out_of_range(page: int, size: int, message: str, a3: AscendOps) -> None:
    with pytest.raises(UsageError, match=message):
        attend(a3, BF16, "first token", page, size, 0.0)


def test_an_fp8_cache_is_refused(a3: AscendOps) -> None:
    pages = torch.zeros(2, 16, 1, 128, dtype=FP8)
    x, step = normal(1, 1, 128).bfloat16(), Step.build([(0, 1, [0])], 16, torch.device("cpu"))
    with pytest.raises(UsageError, match="the model's type .*, not in torch.float8_e4m3fn"):
        a3.rope_store(x, x, x, x[0], x[0], KVCache(pages, pages), step)


def mixture(f: int) -> Callable[..., Tensor]:
    """INT8 experts of width f: 128 and 1536 take the fused gate, 96 (TP16 of 1536) does not."""

    def run(ops: Any, dtype: torch.dtype) -> Tensor:
        e, d, k, tokens = 8, 192, 4, 17
        shapes = ((e, 2 * f, d), (e, d, f))
        gate_up, down = (
            ops.pack(quantised(*s, dtype=dtype, kind=torch.int8, dynamic=True, seed=i))
            for i, s in enumerate(shapes)
        )
        g = torch.Generator().manual_seed(3)
        experts = torch.stack([torch.randperm(e, generator=g)[:k] for _ in range(tokens)])
        routing = (torch.rand(tokens, k, generator=g) + 0.1).to(
            torch.promote_types(dtype, torch.float32)
        )
        x = normal(tokens, d).to(dtype)
        return torch.as_tensor(ops.experts(x, gate_up, down, routing, experts.to(torch.int32)))

    return run


@pytest.mark.parametrize(("width", "fused"), [(128, True), (96, False), (1536, True)])
def test_w8a8_experts_take_the_fused_gate_where_it_fits(
    width: int, fused: bool, a3: AscendOps
) -> None:
    run = mixture(width)
    exact, plain = run(reference, torch.float64), run(reference, BF16)
    assert faults(run(a3, BF16), plain, exact) == []
    assert ("npu_dequant_swiglu_quant" in ran(a3)) == fused
    assert ("npu_swiglu" in ran(a3)) != fused


def test_a_weight_wider_than_the_operator_takes_is_split(
    a3: AscendOps, monkeypatch: pytest.MonkeyPatch
) -> None:
    w = quantised(176, 192, dtype=BF16, kind=torch.int8, dynamic=True)
    x, bias = normal(3, 192).bfloat16(), normal(176, seed=2).bfloat16()
    whole = a3.linear(x, a3.pack(w), bias)
    monkeypatch.setattr("glm_portable.backends.ascend.linear.WIDEST", 100)
    assert torch.equal(a3.linear(x, a3.pack(w), bias), whole)
    assert ran(a3)["npu_quant_matmul"] == 3


def test_blocks_of_int8_are_dequantised(a3: AscendOps) -> None:
    w = quantised(64, 64, dtype=BF16, kind=torch.int8, block=(32, 32), dynamic=True)
    x = normal(3, 64).bfloat16()
    assert torch.equal(a3.linear(x, a3.pack(w)), torch.nn.functional.linear(x, w.dequantize()))


def test_neighbours_do_not_change_a_token(a3: AscendOps) -> None:
    gate_up, down = (
        a3.pack(quantised(4, *s, dtype=BF16, kind=torch.int8, dynamic=True))
        for s in ((128, 64), (64, 64))
    )
    x = normal(5, 64).bfloat16()
    experts = torch.tensor([[0, 1], [0, 1], [2, 3], [1, 0], [3, 0]], dtype=torch.int32)
    routing = torch.full((5, 2), 0.5)
    together = a3.experts(x, gate_up, down, routing, experts)
    assert torch.equal(together[:1], a3.experts(x[:1], gate_up, down, routing[:1], experts[:1]))


def test_pack_leaves_the_checkpoints_tensors_alone(a3: AscendOps) -> None:
    w = quantised(64, 64, dtype=BF16, kind=torch.int8, dynamic=True)
    before = replace(w, data=w.data.clone())
    a3.pack(w)
    assert torch.equal(w.data, before.data)
