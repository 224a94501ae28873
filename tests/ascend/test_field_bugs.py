"""Bugs of GLM on Ascend that were reported from the field: put into the backend, each one shows."""

import ast
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from glm_portable.backends import ascend, reference
from glm_portable.backends.ascend import AscendOps
from glm_portable.verify.cases import named
from glm_portable.verify.metrics import faults
from glm_portable.virtual.npu.refusal import Refusal
from tests.ascend.test_cases import attend, mixture

BF16 = torch.bfloat16
FOLDER = Path(ascend.__file__).parent


class Altered:
    """The operators, one of them called with other arguments or giving another result."""

    def __init__(self, npu: Any, name: str, change: Callable[..., Any]) -> None:
        self.npu, self.name, self.change = npu, name, change

    def __getattr__(self, name: str) -> Any:
        op = getattr(self.npu, name)
        return (lambda *a, **k: self.change(op, *a, **k)) if name == self.name else op


def broken(ops: AscendOps, name: str, change: Callable[..., Any]) -> AscendOps:
    return AscendOps(ops.chip, Altered(ops.npu, name, change), ops.device)


def judge(run: Callable[[Any, torch.dtype], Tensor], ops: AscendOps) -> list[str]:
    return faults(run(ops, BF16), run(reference, BF16), run(reference, torch.float64))


FACTOR = named("route", "bias around 7")


def factor_twice(op: Any, *a: Any, **k: Any) -> Any:
    weights, *rest = op(*a, **k)
    return weights * k["routed_scaling_factor"], *rest


def factor_never(op: Any, *a: Any, **k: Any) -> Any:
    return op(*a, **k | {"routed_scaling_factor": 1.0})


def softmax(op: Any, *a: Any, **k: Any) -> Any:
    return op(*a, **k | {"norm_type": 0})


def without_bias(op: Any, *a: Any, **k: Any) -> Any:
    return op(*a, **k | {"bias": None})


def rounded(op: Any, x: Tensor, *a: Any, **k: Any) -> Any:
    """Logits and bias in BF16, as sglang#31449 and vllm-ascend PR#9617 had them."""
    weights, *rest = op(x.to(BF16), *a, **k | {"bias": k["bias"].to(BF16)})
    return weights.float(), *rest


@pytest.mark.parametrize("bug", [factor_twice, factor_never, softmax, without_bias, rounded])
def test_router(bug: Callable[..., Any], a3: AscendOps) -> None:
    assert FACTOR.findings(a3, BF16) == ()
    assert FACTOR.findings(broken(a3, "npu_moe_gating_top_k", bug), BF16)


def test_a_bias_in_another_type_than_the_logits_is_refused(a3: AscendOps) -> None:
    def bias(op: Any, *a: Any, **k: Any) -> Any:
        return op(*a, **k | {"bias": k["bias"].to(BF16)})

    with pytest.raises(Refusal, match="bias's dtype is torch.bfloat16, but x's is torch.float32"):
        FACTOR.run(broken(a3, "npu_moe_gating_top_k", bias), BF16)


def test_unnormalised_weights_never_reach_the_operator(a3: AscendOps) -> None:
    """It divides by the sum whatever renorm says: vllm-ascend's GLM answered chaotically."""
    named("route", "unnormalised").run(a3, BF16)
    assert "npu_moe_gating_top_k" not in a3.npu._machine.ran


def paged(ops: Any, dtype: torch.dtype) -> Tensor:
    return attend(ops, dtype, "mixed", 16, 128, 0.0)


FIA = "npu_fused_infer_attention_score"


def inverted(op: Any, *a: Any, **k: Any) -> Any:
    return op(*a, **k | {"atten_mask": 1 - k["atten_mask"]})


def summed_kv(op: Any, *a: Any, **k: Any) -> Any:
    total = torch.tensor(k["actual_seq_lengths_kv"]).cumsum(0).tolist()
    return op(*a, **k | {"actual_seq_lengths_kv": total})


def counted_queries(op: Any, *a: Any, **k: Any) -> Any:
    ends = k["actual_seq_lengths"]
    counts = [b - a for a, b in zip([0, *ends], ends, strict=False)]
    return op(*a, **k | {"actual_seq_lengths": counts})


def no_scale(op: Any, *a: Any, **k: Any) -> Any:
    return op(*a, **{n: v for n, v in k.items() if n != "scale"})


@pytest.mark.parametrize(
    ("bug", "message"),
    [
        (inverted, "1 hides a key"),
        (summed_kv, "each sequence's own number of tokens"),
        (counted_queries, "running sum"),
        (no_scale, "attention needs its own"),
    ],
)
def test_attention(bug: Callable[..., Any], message: str, a3: AscendOps) -> None:
    with pytest.raises(Refusal, match=message):
        paged(broken(a3, FIA, bug), BF16)


def test_one_block_table_for_all_sequences_shows(a3: AscendOps) -> None:
    """vllm-ascend#9639: draft layers read another group's block table."""

    def first_row(op: Any, *a: Any, **k: Any) -> Any:
        table = k["block_table"]
        return op(*a, **k | {"block_table": table.roll(1, 0)})

    assert judge(paged, a3) == []
    assert judge(paged, broken(a3, FIA, first_row))


def test_the_default_cache_mode_is_refused(a3: AscendOps) -> None:
    def default(op: Any, *a: Any, **k: Any) -> Any:
        return op(*a, **{n: v for n, v in k.items() if n != "cache_mode"})

    with pytest.raises(Refusal, match="cache_mode is PA_NZ, but pages .* need 'Norm'"):
        paged(broken(a3, "npu_scatter_pa_kv_cache", default), BF16)


def test_rotating_the_whole_head_shows(a3: AscendOps) -> None:
    """vllm-ascend PR#2847: a rotary width of the whole head where GLM rotates half of it."""

    def whole(
        op: Any, at: Tensor, q: Tensor, k: Tensor, angles: Tensor, size: int, **r: Any
    ) -> Any:
        cos, sin = angles.chunk(2, -1)
        return op(at, q, k, torch.cat([cos, cos, sin, sin], -1), size, **r)

    case = named("rope_store", "half a head")
    assert case.findings(a3, BF16) == ()
    assert case.findings(broken(a3, "npu_mrope", whole), BF16)


def test_interleaved_rotation_is_refused(a3: AscendOps) -> None:
    def interleaved(op: Any, *a: Any, **k: Any) -> Any:
        return op(*a, **k | {"rotary_mode": "interleave"})

    with pytest.raises(Refusal, match="rotary_mode is interleave"):
        named("rope_store", "half a head").run(broken(a3, "npu_mrope", interleaved), BF16)


INT8 = mixture(96)


def test_a_float32_scale_gives_float16_and_is_refused(a3: AscendOps) -> None:
    def wide(op: Any, *a: Any, **k: Any) -> Any:
        if k.get("scale"):
            k["scale"] = [k["scale"][0].float()]
        return op(*a, **k)

    with pytest.raises(Refusal, match="a scale of torch.float32 gives torch.float16"):
        INT8(broken(a3, "npu_grouped_matmul", wide), BF16)


def test_the_gate_on_the_wrong_half_shows(a3: AscendOps) -> None:
    """npu_dequant_swiglu_quant activates the right half unless told otherwise."""

    def right(op: Any, *a: Any, **k: Any) -> Any:
        return op(*a, **{n: v for n, v in k.items() if n != "activate_left"})

    run = mixture(128)
    assert judge(run, a3) == []
    assert judge(run, broken(a3, "npu_dequant_swiglu_quant", right))


def test_counts_read_as_sums_are_refused(a3: AscendOps) -> None:
    def sums(op: Any, *a: Any, **k: Any) -> Any:
        return op(*a, **k | {"group_list_type": 0})

    with pytest.raises(Refusal, match="group_list_type 0 means cumulative sums"):
        named("experts", "16 tokens").run(broken(a3, "npu_grouped_matmul", sums), BF16)


def test_foreign_choices_need_abs_and_zero_weights(a3: AscendOps) -> None:
    """Row -1 is no index: engines take abs(), which is right only if those weights are 0."""
    ids = torch.tensor([[0, 1], [2, 3]], dtype=torch.int32)
    x = torch.tensor([[1.0], [2.0]], dtype=BF16)
    rows, row_idx, counts, _ = a3.npu.npu_moe_init_routing_v2(
        x, ids, active_num=4, expert_num=4, expert_tokens_num_type=1,
        expert_tokens_num_flag=True, active_expert_range=[0, 2], quant_mode=-1,
    )  # fmt: skip
    assert row_idx.tolist() == [0, 1, -1, -1] and counts.tolist() == [1, 1]
    with pytest.raises(Refusal, match=r"sorted_indices is \[0, 1, -1, -1\]"):
        a3.npu.npu_moe_token_unpermute(rows, row_idx, probs=torch.ones(2, 2))


FUNCTIONS_OF_GRAPHS = sorted(FOLDER.glob("*.py"))


def inplace_operators(source: str) -> list[str]:
    """`x += y` and its kin on anything but a plain counter of integers."""
    return [
        ast.unparse(node) for node in ast.walk(ast.parse(source)) if isinstance(node, ast.AugAssign)
    ]


@pytest.mark.parametrize("path", FUNCTIONS_OF_GRAPHS, ids=lambda p: p.name)
def test_no_augmented_assignment_in_the_backend(path: Path) -> None:
    """Within a captured graph `x += y` gave wrong values on NPUs; `x.add_(y)` did not (#6182)."""
    assert inplace_operators(path.read_text(encoding="utf-8")) == []


def test_the_lint_sees_an_augmented_assignment() -> None:
    assert inplace_operators("def f(x, y):\n    x += y\n    return x") == ["x += y"]
