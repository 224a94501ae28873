"""The GPU backends, their kernels interpreted, against the reference in float64."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from glm_portable.backends import reference
from glm_portable.backends.rocm import virtual
from glm_portable.config import ModelConfig
from glm_portable.errors import UsageError
from glm_portable.kernels.launch import observed
from glm_portable.ops import KVCache, Step, Weight
from glm_portable.verify.metrics import faults
from glm_portable.virtual import interpreter
from tests.backends.cases import CASES, Case, normal, quantised, weight
from tests.random_checkpoint import small_config

FNUZ, OCP = (virtual(arch, interpreter.launch) for arch in ("gfx942", "gfx950"))
FP8 = torch.float8_e4m3fn


@pytest.mark.parametrize("case", CASES, ids=str)
def test_errs_no_more_than_twice_as_much_as_plain_pytorch(case: Case) -> None:
    exact = case.run(reference, torch.float64)
    plain = case.run(reference, torch.bfloat16)
    assert faults(case.run(FNUZ, torch.bfloat16), plain, exact) == []


SOME = [
    c for c in CASES
    if c.name in ("fp8, dynamic activations", "fp8 blocks with a rest", "fp8 per channel",
                  "5 tokens", "decode of unequal lengths", "after the norm", "with residual",
                  "352 columns", "small bias")
]  # fmt: skip


@pytest.mark.parametrize("case", SOME, ids=str)
def test_float32_and_the_other_dialect(case: Case) -> None:
    exact = case.run(reference, torch.float64)
    plain = case.run(reference, torch.float32)
    assert faults(case.run(OCP, torch.float32), plain, exact) == []


def test_both_dialects_round_activations_to_the_same_codes() -> None:
    case = next(c for c in CASES if c.name == "fp8, dynamic activations" and c.op == "experts")
    assert torch.equal(case.run(FNUZ, torch.bfloat16), case.run(OCP, torch.bfloat16))


def blocked(dynamic: bool) -> tuple[Weight, Weight]:
    """(gate_up, down) of 8 experts with 128 x 128 blocks, that leave a rest in all directions."""
    shapes = ((8, 2 * 176, 192), (8, 192, 176))
    gate_up, down = (
        quantised(*s, dtype=torch.float64, kind=FP8, block=(128, 128), dynamic=dynamic, seed=i)
        for i, s in enumerate(shapes)
    )
    return gate_up, down


@pytest.mark.parametrize("dynamic", [True, False], ids=["w8a8", "w8a16"])
def test_experts_with_scales_of_blocks(dynamic: bool) -> None:
    experts = torch.tensor([[7, 0, 3], [3, 7, 2], [0, 3, 7]], dtype=torch.int32)
    weights = torch.tensor([[0.5, 1.0, 2.0]] * 3)

    def run(ops: Any, dtype: torch.dtype) -> Tensor:
        gate_up, down = (ops.pack(replace(w, dtype=dtype)) for w in blocked(dynamic))
        result: Tensor = ops.experts(normal(3, 192).to(dtype), gate_up, down, weights, experts)
        return result

    exact, plain = run(reference, torch.float64), run(reference, torch.bfloat16)
    assert faults(run(FNUZ, torch.bfloat16), plain, exact) == []


def test_blocks_too_narrow_for_the_kernels_are_dequantised() -> None:
    w = quantised(64, 48, dtype=torch.bfloat16, kind=FP8, block=(16, 16))
    packed = FNUZ.pack(w)
    assert packed.data.dtype == torch.bfloat16 and packed.scale is None
    assert torch.equal(packed.data, w.dequantize())


def test_pack_neither_alters_nor_aliases_an_fp8_weight() -> None:
    w = quantised(64, 48, dtype=torch.bfloat16, kind=FP8)
    w.data.view(torch.uint8)[0, 0] = 0x80
    before = w.data.view(torch.uint8).clone()
    packed = FNUZ.pack(w)
    assert torch.equal(w.data.view(torch.uint8), before)
    assert packed.data.dtype == torch.float8_e4m3fnuz
    assert packed.scale is not None and w.scale is not None
    assert torch.equal(packed.data.double() * packed.scale, w.data.double() * w.scale)


def test_the_other_dialect_is_refused_where_it_would_be_emulated() -> None:
    packed = OCP.pack(quantised(64, 48, dtype=torch.bfloat16, kind=FP8, dynamic=True))
    with pytest.raises(UsageError, match="float8_e4m3fn on gfx942: this chip computes with"):
        FNUZ.linear(normal(1, 48).bfloat16(), packed)
    pages = torch.zeros(2, 16, 1, 64, dtype=FP8)
    cache, step = KVCache(pages, pages), Step.build([(0, 1, [0])], 16, torch.device("cpu"))
    x = normal(1, 1, 64).bfloat16()
    with pytest.raises(UsageError, match="KV cache of bfloat16 or torch.float8_e4m3fnuz"):
        FNUZ.rope_store(x, x, x, x[0], x[0], cache, step)
    with pytest.raises(UsageError, match="float8_e4m3fn on gfx942"):
        FNUZ.attend(x, cache, step, 1.0)


def test_widths_that_the_vendor_library_refuses_go_through_the_kernel() -> None:
    """Air's dense MLP is 1368 wide under TP8: no multiple of 16."""
    n, r = 40, 72
    w = quantised(n, r, dtype=torch.bfloat16, kind=FP8, dynamic=True)
    x, bias = normal(17, r).bfloat16(), normal(n, seed=2).bfloat16()
    exact = reference.linear(x.double(), replace(w, dtype=torch.float64), bias.double())
    plain = reference.linear(x, w, bias)
    assert faults(FNUZ.linear(x, FNUZ.pack(w), bias), plain, exact) == []


def test_neighbours_do_not_change_a_token() -> None:
    gate_up, down = (OCP.pack(weight(4, *s, dtype=torch.bfloat16)) for s in ((128, 64), (64, 64)))
    x = normal(5, 64).bfloat16()
    experts = torch.tensor([[0, 1], [0, 1], [2, 3], [1, 0], [3, 0]], dtype=torch.int32)
    weights = torch.full((5, 2), 0.5)
    together = OCP.experts(x, gate_up, down, weights, experts)
    assert torch.equal(together[:1], OCP.experts(x[:1], gate_up, down, weights[:1], experts[:1]))


@pytest.mark.parametrize("ops", [FNUZ, OCP], ids=["gfx942", "gfx950"])
@pytest.mark.parametrize("kernel", ["vendor", "own"])
def test_fp8_products_add_their_bias(ops: Any, kernel: str) -> None:
    """By the vendor's library on widths that are multiples of 16, by our kernel on others."""
    n = 64 if kernel == "vendor" else 56
    w = quantised(n, 96, dtype=torch.bfloat16, kind=FP8, dynamic=True)
    x, bias = normal(17, 96).bfloat16(), (normal(n, seed=2) * 4).bfloat16()
    launch, seen = observed(interpreter.launch)
    got = virtual(ops.target.arch, launch).linear(x, ops.pack(w), bias)
    exact = reference.linear(x.double(), replace(w, dtype=torch.float64), bias.double())
    assert faults(got, reference.linear(x, w, bias), exact) == []
    assert seen == ({"quantize": 1} if kernel == "vendor" else {"quantize": 1, "grouped_gemm": 1})


def test_no_tokens_start_no_kernel() -> None:
    """A rank may be left without tokens for its experts."""
    launch, seen = observed(interpreter.launch)
    ops = virtual("gfx942", launch)
    cfg = ModelConfig.from_dict(small_config(n_routed_experts=16, num_experts_per_tok=4))
    x, ids = torch.empty(0, 64).bfloat16(), torch.empty(0, 4, dtype=torch.int32)
    for dynamic in (True, False):
        gate_up, down, flat, odd = (
            ops.pack(quantised(*s, dtype=torch.bfloat16, kind=FP8, dynamic=dynamic))
            for s in ((16, 64, 64), (16, 64, 32), (48, 64), (40, 64))
        )
        assert ops.experts(x, gate_up, down, torch.empty(0, 4), ids).shape == (0, 64)
        assert ops.linear(x, flat).shape == (0, 48) and ops.linear(x, odd).shape == (0, 40)
        normed, total = ops.rms_norm(x, torch.ones(64).bfloat16(), 1e-5, x, flat)
        assert normed.shape == total.shape == (0, 64)
        assert ops.linear(normed, flat).dtype == torch.bfloat16
        assert ops.silu_mul(x, None).shape == (0, 32)
    assert ops.linear(x, ops.pack(weight(48, 64, dtype=torch.bfloat16))).shape == (0, 48)
    weights, experts = ops.route(x, torch.ones(16, 64), torch.zeros(16), cfg)
    assert weights.shape == experts.shape == (0, 4) and not seen
