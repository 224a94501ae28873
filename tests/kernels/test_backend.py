"""The GPU backends on every machine, against the reference in float64."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from glm_portable.backends import reference
from glm_portable.backends._gpu import GpuOps
from glm_portable.backends.rocm import virtual
from glm_portable.config import ModelConfig
from glm_portable.errors import UsageError
from glm_portable.kernels.launch import observed
from glm_portable.kernels.target import FNUZ, OCP
from glm_portable.ops import KVCache, Step, Weight
from glm_portable.verify.cases import CASES, Case
from glm_portable.verify.cases.data import normal, on, quantised, weight
from glm_portable.verify.metrics import faults
from tests.kernels.inputs import BF16, FP8, fp8, full
from tests.kernels.machine import Machine
from tests.random_checkpoint import small_config

SMOKE = {
    "linear: fp8, dynamic activations", "linear: fp8 blocks with a rest",
    "experts: fp8, dynamic activations, one token", "experts: 4 tokens", "attend: mixed",
    "rms_norm: with residual", "rope_store: after the norm", "silu_mul: 352 columns",
    "route: bias around 7",
}  # fmt: skip


def _depends(case: Case) -> bool:
    """Whether the dialect of FP8 matters."""
    return "fp8" in case.name or "e4m3fn" in case.name


LONG = ("keys", "2049 tokens")  # an hour on a simulated chip
AFFORDED = [case for case in CASES if not any(word in case.name for word in LONG)]
DIALECTS = {"e4m3fn": OCP, "e4m3fnuz": FNUZ}
SIZED = [
    pytest.param(
        case,
        marks=[*([] if str(case) in SMOKE else [full]), *([fp8] if _depends(case) else [])],
        id=str(case),
    )
    for case in AFFORDED
]


def _spoken(case: Case) -> torch.dtype | None:
    """The dialect of a case's KV pages."""
    return next((DIALECTS[kind] for kind in DIALECTS if f"{kind} pages" in case.name), None)


def check(machine: Machine, case: Case, dtype: torch.dtype) -> None:
    if _spoken(case) not in (None, machine.target.fp8):
        with pytest.raises(UsageError, match="float8_e4m3fn"):
            case.run(machine.ops, dtype)
        return
    assert case.findings(machine.ops, dtype) == ()


def test_the_smoke_cases_are_there() -> None:
    assert {str(case) for case in CASES} >= SMOKE


@pytest.mark.parametrize("case", SIZED)
def test_errs_no_more_than_twice_as_much_as_plain_pytorch(machine: Machine, case: Case) -> None:
    check(machine, case, BF16)


@full
@pytest.mark.parametrize("case", [c for c in AFFORDED if not c.rounds_within], ids=str)
def test_float32(machine: Machine, case: Case) -> None:
    check(machine, case, torch.float32)


@fp8
@pytest.mark.parametrize("dynamic", [True, pytest.param(False, marks=full)], ids=str)
def test_experts_with_scales_of_blocks(machine: Machine, dynamic: bool) -> None:
    """8 experts with 128 x 128 blocks, that leave a rest in all directions."""
    experts = torch.tensor([[7, 0, 3], [3, 7, 2], [0, 3, 7]], dtype=torch.int32)
    weights = torch.tensor([[0.5, 1.0, 2.0]] * 3)

    def run(ops: Any, dtype: torch.dtype) -> Tensor:
        gate_up, down = (
            ops.pack(on(ops, quantised(
                *shape, dtype=dtype, kind=FP8, block=(128, 128), dynamic=dynamic, seed=i
            )))
            for i, shape in enumerate(((8, 2 * 176, 192), (8, 192, 176)))
        )  # fmt: skip
        x, *routing = (t.to(ops.device) for t in (normal(3, 192).to(dtype), weights, experts))
        result: Tensor = ops.experts(x, gate_up, down, *routing)
        return result.cpu()

    exact, plain = run(reference, torch.float64), run(reference, BF16)
    assert faults(run(machine.ops, BF16), plain, exact) == []


def test_blocks_too_narrow_for_the_kernels_are_dequantised(machine: Machine) -> None:
    w = quantised(64, 48, dtype=BF16, kind=FP8, block=(16, 16))
    packed = machine.ops.pack(on(machine.ops, w))
    assert packed.data.dtype == BF16 and packed.scale is None
    assert torch.equal(packed.data.cpu(), w.dequantize())


@fp8
def test_pack_neither_alters_nor_aliases_an_fp8_weight(machine: Machine) -> None:
    w = on(machine.ops, quantised(64, 48, dtype=BF16, kind=FP8))
    w.data.view(torch.uint8)[0, 0] = 0x80
    before = w.data.view(torch.uint8).clone()
    packed = machine.ops.pack(w)
    assert torch.equal(w.data.view(torch.uint8), before)
    assert packed.data.dtype == machine.target.fp8
    assert packed.scale is not None and w.scale is not None
    assert torch.equal(packed.data.double() * packed.scale, w.data.double() * w.scale)


@fp8
def test_the_other_dialect_is_refused_where_it_would_be_emulated(machine: Machine) -> None:
    ops, arch = machine.ops, machine.target.arch
    other, theirs = (OCP, "gfx950") if ops.target.fp8 == FNUZ else (FNUZ, "gfx942")
    w = on(ops, quantised(64, 48, dtype=BF16, kind=FP8, dynamic=True))
    x = machine.put(normal(1, 48).to(BF16))
    with pytest.raises(UsageError, match=f"{other} on {arch}: this chip computes with"):
        ops.linear(x, virtual(theirs, machine.launch).pack(w))
    pages = machine.put(torch.zeros(2, 16, 1, 64).to(other))
    cache, step = KVCache(pages, pages), Step.build([(0, 1, [0])], 16, machine.device)
    heads = machine.put(normal(1, 1, 64).to(BF16))
    with pytest.raises(UsageError, match=f"KV cache of bfloat16 or {ops.target.fp8}"):
        ops.rope_store(heads, heads, heads, heads[0], heads[0], cache, step)
    with pytest.raises(UsageError, match=f"{other} on {arch}"):
        ops.attend(heads, cache, step, 1.0)


@fp8
@pytest.mark.parametrize(
    ("n", "r", "kernel"), [(64, 96, "vendor"), (64, 72, "vendor"), (40, 72, "own")]
)
def test_fp8_products_add_their_bias(machine: Machine, n: int, r: int, kernel: str) -> None:
    """By the vendor's library where the height is a multiple of 16. Columns are filled up to one:
    Air's dense MLP has 1,368 under TP8."""
    w = quantised(n, r, dtype=BF16, kind=FP8, dynamic=True)
    x, bias = normal(17, r).to(BF16), (normal(n, seed=2) * 4).to(BF16)
    exact = reference.linear(x.double(), replace(w, dtype=torch.float64), bias.double())
    ops, seen = watched(machine)
    got = ops.linear(machine.put(x), ops.pack(on(ops, w)), machine.put(bias))
    assert faults(got.cpu(), reference.linear(x, w, bias), exact) == []
    assert seen == ({"quantize": 1} if kernel == "vendor" else {"quantize": 1, "grouped_gemm": 1})


def watched(machine: Machine) -> tuple[GpuOps, Any]:
    """The machine's backend, and the counts of the kernels that it starts."""
    launch, seen = observed(machine.launch)
    return GpuOps(machine.ops.name, machine.device, machine.target, launch), seen


def test_no_tokens_start_no_kernel(machine: Machine) -> None:
    """A rank may be left without tokens for its experts."""
    ops, seen = watched(machine)
    cfg = ModelConfig.from_dict(small_config(n_routed_experts=16, num_experts_per_tok=4))

    def empty(*shape: int, dtype: torch.dtype = BF16) -> Tensor:
        return torch.empty(*shape, dtype=dtype, device=machine.device)

    x, ids = empty(0, 64), empty(0, 4, dtype=torch.int32)
    for dynamic in (True, False):
        gate_up, down, flat, odd = (
            ops.pack(on(ops, quantised(*s, dtype=BF16, kind=FP8, dynamic=dynamic)))
            for s in ((16, 64, 64), (16, 64, 32), (48, 64), (40, 64))
        )
        weights = empty(0, 4, dtype=torch.float32)
        assert ops.experts(x, gate_up, down, weights, ids).shape == (0, 64)
        assert ops.linear(x, flat).shape == (0, 48) and ops.linear(x, odd).shape == (0, 40)
        normed, total = ops.rms_norm(x, machine.put(torch.ones(64).to(BF16)), 1e-5, x, flat)
        assert normed.shape == total.shape == (0, 64)
        assert ops.linear(normed, flat).dtype == BF16
        assert ops.silu_mul(x, None).shape == (0, 32)
    assert ops.linear(x, ops.pack(on(ops, weight(48, 64, dtype=BF16)))).shape == (0, 48)
    gate, bias = machine.put(torch.ones(16, 64)), machine.put(torch.zeros(16))
    weights, experts = ops.route(x, gate, bias, cfg)
    assert weights.shape == experts.shape == (0, 4) and not seen


def packed(machine: Machine, kind: str) -> list[Weight]:
    """(gate_up, down) of 4 experts."""
    shapes = ((4, 128, 64), (4, 64, 64))
    plain = kind == "bf16"
    return [
        machine.ops.pack(on(machine.ops, w))
        for w in (
            weight(*s, dtype=BF16) if plain else quantised(*s, dtype=BF16, kind=FP8, dynamic=True)
            for s in shapes
        )
    ]


@fp8
@pytest.mark.parametrize("kind", ["bf16", "w8a8"])
def test_a_token_has_the_same_bits_alone_in_a_crowd_and_again(machine: Machine, kind: str) -> None:
    gate_up, down = packed(machine, kind)
    x = machine.put(normal(5, 64).to(BF16))
    experts = torch.tensor([[0, 1], [0, 1], [2, 3], [1, 0], [3, 0]], dtype=torch.int32)
    experts, weights = machine.put(experts), machine.put(torch.full((5, 2), 0.5))

    def run(tokens: int) -> Tensor:
        return machine.ops.experts(x[:tokens], gate_up, down, weights[:tokens], experts[:tokens])

    together = run(5)
    assert torch.equal(together, run(5))
    assert torch.equal(together[:1], run(1))
