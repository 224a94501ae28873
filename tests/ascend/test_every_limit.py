"""No limit stands in the semantics that no test violates: the rest of test_limits, and the count.

These go to the semantics themselves: torch_npu's own shape inference would refuse some of them
first, and still another version of it may not.
"""

import ast
import functools
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch

from glm_portable.backends.ascend.chip import Chip
from glm_portable.virtual.npu import semantics
from glm_portable.virtual.npu.refusal import Refusal
from glm_portable.virtual.npu.semantics import KERNELS
from tests.ascend.test_limits import (
    F16,
    F32,
    FP8,
    I8,
    I32,
    VALID,
    VIOLATIONS,
    attend,
    gate,
    gating,
    grouped,
    grouped8,
    init,
    mrope,
    quant,
    scatter,
    turned,
    unpermute,
    z,
)

FOLDER = Path(semantics.__file__).parent


class Direct:
    """Stands where the operators do, and calls their semantics at once."""

    chip = Chip.named("Ascend910_9391")

    def __getattr__(self, name: str) -> Callable[..., Any]:
        return functools.partial(KERNELS[name], self.chip)


def many(n: Any) -> Any:
    count = 4097
    return attend(
        n, q=z(count, 4, 128), actual_seq_lengths=list(range(1, count + 1)),
        actual_seq_lengths_kv=[1] * count, block_table=torch.zeros(count, 1, dtype=I32),
    )  # fmt: skip


def spread_cache(n: Any) -> Any:
    rows, cache = z(2, 2, 128), z(16, 4, 2, 128).transpose(0, 1)
    slots = torch.tensor([3, 17], dtype=I32)
    return n.npu_scatter_pa_kv_cache(rows, rows, cache, z(4, 16, 2, 128), slots, cache_mode="Norm")


def floats_to_the_gate(n: Any) -> Any:
    return n.npu_dequant_swiglu_quant(z(8, 256), group_index=torch.tensor([3, 5]), quant_mode=1)


def long_indices(n: Any) -> Any:
    return n.npu_moe_token_unpermute(z(4, 64), torch.arange(4), probs=z(2, 2, dtype=F32))


def many_choices(n: Any) -> Any:
    index = torch.arange(513, dtype=I32)
    return n.npu_moe_token_unpermute(z(513, 4), index, probs=z(1, 513, dtype=F32))


REST: list[tuple[Callable[[Any], Any], str]] = [
    (lambda n: attend(n, input_layout="BSH"), "input_layout is BSH"),
    (lambda n: attend(n, softmax_lse_flag=True), "softmax_lse_flag is True"),
    (lambda n: attend(n, pse_shift=z(1)), "pse_shift is given"),
    (lambda n: attend(n, block_table=None), "block_table is None"),
    (lambda n: attend(n, actual_seq_lengths_kv=[20]), "length is 1, but there are 2 sequences"),
    (lambda n: attend(n, block_table=z(1, 2, dtype=I32)), "block_table's rows is 1"),
    (lambda n: attend(n, k=turned(6, 16, 256)), "key's strides"),
    (lambda n: attend(n, q=z(7, 4, 64), k=z(6, 16, 128), v=z(6, 16, 128)), "head size is 64"),
    (many, "4096 is the most"),
    (lambda n: scatter(n, compress_lens=z(1)), "compress_lens is given"),
    (lambda n: scatter(n, (3,)), "slot_mapping's length is 1"),
    (spread_cache, "key_cache's strides"),
    (lambda n: grouped(n, group_type=2), "group_type is 2"),
    (lambda n: grouped(n, act_type=1), "act_type is 1"),
    (lambda n: grouped(n, bias=[z(2, 32)]), "bias is given"),
    (lambda n: grouped(n, w=z(64, 32)), "weight is .*one stack of matrices"),
    (lambda n: grouped(n, z(2, 4, 64)), "x's shape is .*2 dimensions"),
    (lambda n: grouped(n, z(8, 64, dtype=I32)), "x's dtype is torch.int32"),
    (lambda n: grouped(n, z(8, 64).to(FP8)), "Ascend910_9391 has no FP8"),
    (lambda n: grouped(n, scale=[z(2, 32)]), "scale is given, but x is torch.bfloat16"),
    (lambda n: grouped(n, output_dtype=F32), "output_dtype is torch.float32"),
    (lambda n: grouped8(n, per_token_scale=None), "per_token_scale is None"),
    (lambda n: n.npu_dynamic_quant(z(2, 8), dst_type=FP8), "has no FP8"),
    (lambda n: n.npu_dynamic_quant(z(2, 8), dst_type=I32), "dst_type is torch.int32"),
    (lambda n: n.npu_dynamic_quant(z(2, 8), quant_mode="pertensor"), "quant_mode is pertensor"),
    (lambda n: n.npu_dynamic_quant(z(2, 8), smooth_scales=z(8)), "smooth_scales is given"),
    (lambda n: quant(n, x1=z(4, 64).to(FP8)), "x1's dtype is .*has no FP8"),
    (lambda n: quant(n, x1=z(4, 64, dtype=I32)), "x1's dtype is torch.int32"),
    (lambda n: quant(n, pertoken_scale=None), "pertoken_scale is None"),
    (lambda n: quant(n, output_dtype=F32), "output_dtype is torch.float32"),
    (lambda n: quant(n, scale=z(32, dtype=F16)), "scale's dtype is torch.float16"),
    (lambda n: quant(n, scale=z(16, dtype=F32)), "scale's shape"),
    (lambda n: quant(n, bias=z(32, dtype=F16)), "bias's dtype is torch.float16"),
    (lambda n: quant(n, bias=z(16)), "bias's shape"),
    (lambda n: quant(n, bias=z(32, dtype=I32)), "bias's dtype is torch.int32"),
    (floats_to_the_gate, "x is torch.bfloat16"),
    (lambda n: gate(n, quant_mode=0), "quant_mode is 0"),
    (lambda n: gate(n, swiglu_mode=1), "swiglu_mode is 1"),
    (lambda n: gate(n, bias=z(2, 256)), "bias is given"),
    (lambda n: gate(n, group_index=None), "group_index is None"),
    (lambda n: gate(n, weight_scale=None), "weight_scale is None"),
    (lambda n: gate(n, activation_scale=None), "activation_scale is None"),
    (lambda n: n.npu_format_cast(z(8), 29), "a matrix or a stack"),
    (lambda n: mrope(n, q=z(3, 256, dtype=I32)), "query's dtype is torch.int32"),
    (lambda n: mrope(n, mrope_section=[16, 8, 8]), "mrope_section is"),
    (lambda n: mrope(n, rotary_mode="interleave"), "rotary_mode is interleave"),
    (lambda n: mrope(n, at=z(3)), "one integer a token"),
    (lambda n: mrope(n, q=z(3, 200)), "query's shape"),
    (lambda n: gating(n, z(160, dtype=F32)), "x's shape"),
    (lambda n: gating(n, input_ids=z(4)), "input_ids is given"),
    (lambda n: init(n, z(4, 64, dtype=I8)), "x's dtype is torch.int8"),
    (lambda n: init(n, row_idx_type=1), "row_idx_type is 1"),
    (lambda n: init(n, scale=z(4)), "scale is given"),
    (long_indices, "sorted_indices's dtype is torch.int64"),
    (lambda n: unpermute(n, [0, 1, 2, 3], probs=z(3, 2, dtype=F32)), "probs's shape"),
    (many_choices, "512 is the most"),
]


@pytest.mark.usefixtures("a3")
@pytest.mark.parametrize("call, message", REST, ids=[message for _, message in REST])
def test_a_violation_is_refused(call: Callable[[Any], Any], message: str) -> None:
    with pytest.raises(Refusal, match=message):
        call(Direct())


def refusing(call: Callable[[Any], Any]) -> tuple[str, int] | None:
    """File and line of the `require` that refuses a call."""
    try:
        call(Direct())
    except Refusal as refusal:
        trace, frames = refusal.__traceback__, []
        while trace is not None:
            frames.append((trace.tb_frame, trace.tb_lineno))
            trace = trace.tb_next
        frame, line = frames[-2]
        assert isinstance(frame, FrameType)
        return Path(frame.f_code.co_filename).name, line
    return None


def limits() -> list[tuple[str, range, str]]:
    """File, lines and text of every `require` in the semantics."""
    found = []
    for path in sorted(FOLDER.glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "require":
                assert node.end_lineno is not None
                lines = range(node.lineno, node.end_lineno + 1)
                found.append((path.name, lines, ast.unparse(node)))
    return found


@pytest.mark.usefixtures("a3")
def test_every_limit_is_violated() -> None:
    calls = [call for call, _ in REST] + [call for _, call, _ in VIOLATIONS]
    reached = {refusing(call) for call in calls}
    whole = limits()
    assert len(whole) > 100
    never = [
        (file, lines.start, text)
        for file, lines, text in whole
        if not any((file, line) in reached for line in lines)
    ]
    assert never == []
    assert {refusing(call) for call in VALID} == {None}
