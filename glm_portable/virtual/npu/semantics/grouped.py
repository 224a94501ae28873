"""Many products in one call: npu_grouped_matmul, grouped along the rows."""

from collections.abc import Sequence

import torch
from torch import Tensor

from glm_portable.backends.ascend.chip import Chip
from glm_portable.virtual.npu.refusal import require, values_needed
from glm_portable.virtual.npu.semantics.dtypes import of_argument
from glm_portable.virtual.npu.semantics.quantised import HALVES, product
from glm_portable.virtual.npu.semantics.undefined import undefined

OP = "npu_grouped_matmul"
CUMULATIVE, COUNTS = 0, 1
MOST_GROUPS = 1024
WIDEST = 65536
PLAIN = (*HALVES, torch.float32)
OUTPUT_OF_SCALE = {torch.bfloat16: torch.bfloat16, torch.float32: torch.float16}
"""Per-token INT8 on A2 and A3: the type of the weight's scale decides the type of the result."""


def grouped_matmul(
    chip: Chip,
    x: Sequence[Tensor],
    weight: Sequence[Tensor],
    *,
    bias: Sequence[Tensor] | None = None,
    scale: Sequence[Tensor] | None = None,
    offset: Sequence[Tensor] | None = None,
    antiquant_scale: Sequence[Tensor] | None = None,
    antiquant_offset: Sequence[Tensor] | None = None,
    per_token_scale: Sequence[Tensor] | None = None,
    group_list: Tensor | None = None,
    activation_input: Sequence[Tensor] | None = None,
    activation_quant_scale: Sequence[Tensor] | None = None,
    activation_quant_offset: Sequence[Tensor] | None = None,
    split_item: int = 0,
    group_type: int | None = None,
    group_list_type: int = 0,
    act_type: int = 0,
    tuning_config: list[int] | None = None,
    output_dtype: int | None = None,
    x_dtype: int | None = None,
    weight_dtype: int | None = None,
    scale_dtype: int | None = None,
    per_token_scale_dtype: int | None = None,
) -> list[Tensor]:
    """[x[rows of group g] @ weight[g]]; rows after the last group are undefined."""
    require(group_type == 0, OP, "group_type", group_type, "0 (rows) is what is simulated")
    require(split_item in (2, 3), OP, "split_item", split_item, "one result needs 2 or 3")
    require(act_type == 0, OP, "act_type", act_type, "0 is what is simulated")
    for argument, given in (
        ("bias", bias),
        ("offset", offset),
        ("antiquant_scale", antiquant_scale),
    ):
        require(not given, OP, argument, "given", "it is not simulated")
    require(
        len(x) == 1 and len(weight) == 1 and weight[0].dim() == 3,
        OP,
        "weight",
        [tuple(w.shape) for w in weight],
        "one stack of matrices is what is simulated",
    )
    rows, stack = x[0], weight[0]
    _check_product(chip, rows, stack)
    groups = _checked_list(group_list, group_list_type, len(stack))
    out = _output(rows, stack, scale, per_token_scale, of_argument(output_dtype))
    values_needed(rows)
    ends = _ends(groups, group_list_type, len(rows))
    y = undefined(len(rows), stack.shape[2], dtype=out)
    begin = 0
    for g, end in enumerate(ends):
        if end > begin:
            part = _multiply(rows[begin:end], stack[g])
            if scale:
                part = part.float() * scale[0][g].float()
            if per_token_scale:
                part = part * per_token_scale[0][begin:end].unsqueeze(1)
            y[begin:end] = part.to(out)
        begin = end
    return [y]


def _check_product(chip: Chip, x: Tensor, stack: Tensor) -> None:
    for argument, value in (("x", x), ("weight", stack)):
        kind = value.dtype
        if kind.itemsize == 1 and kind.is_floating_point:
            require(
                chip.generation == "A5",
                OP,
                f"{argument}'s dtype",
                kind,
                f"{chip.name} has no FP8: use BF16 or W8A8",
            )
        require(
            kind in (*PLAIN, torch.int8),
            OP,
            f"{argument}'s dtype",
            kind,
            f"{(*PLAIN, torch.int8)} are what is simulated",
        )
        require(
            value.shape[-1] <= WIDEST,
            OP,
            f"{argument}'s inner axis",
            value.shape[-1],
            f"{WIDEST} is the most",
        )
    require(x.dtype == stack.dtype, OP, "weight's dtype", stack.dtype, f"x's is {x.dtype}")
    require(x.dim() == 2, OP, "x's shape", tuple(x.shape), "it must have 2 dimensions")
    k = x.shape[1]
    require(stack.shape[1] == k, OP, "weight's rows", stack.shape[1], f"x has {k} columns")
    require(len(stack) <= MOST_GROUPS, OP, "groups", len(stack), f"{MOST_GROUPS} is the most")


def _checked_list(group_list: Tensor | None, kind: int, groups: int) -> Tensor:
    require(group_list is not None, OP, "group_list", None, "grouping rows needs it")
    assert group_list is not None
    require(
        group_list.dtype == torch.int64,
        OP,
        "group_list's dtype",
        group_list.dtype,
        "it must be int64",
    )
    require(
        tuple(group_list.shape) == (groups,),
        OP,
        "group_list's shape",
        tuple(group_list.shape),
        f"weight has {groups} matrices",
    )
    require(kind in (CUMULATIVE, COUNTS), OP, "group_list_type", kind, "0 and 1 are simulated")
    return group_list


def _ends(group_list: Tensor, kind: int, rows: int) -> list[int]:
    """Where each group's rows end."""
    listed = group_list.tolist()
    ends = group_list.cumsum(0).tolist() if kind == COUNTS else listed
    rising = all(a <= b for a, b in zip([0, *ends], ends, strict=False))
    form = "counts" if kind == COUNTS else "cumulative sums"
    require(
        rising and ends[-1] <= rows,
        OP,
        "group_list",
        listed,
        f"group_list_type {kind} means {form}, which must not fall and must end at most at "
        f"x's {rows} rows",
    )
    return [int(end) for end in ends]


def _output(
    x: Tensor,
    stack: Tensor,
    scale: Sequence[Tensor] | None,
    per_token_scale: Sequence[Tensor] | None,
    asked: torch.dtype | None,
) -> torch.dtype:
    """The type of the result, which the types of the scales decide."""
    if x.dtype != torch.int8:
        require(not scale and not per_token_scale, OP, "scale", "given", f"x is {x.dtype}")
        require(asked in (None, x.dtype), OP, "output_dtype", asked, f"x is {x.dtype}")
        return x.dtype
    if not scale:
        require(asked == torch.int32, OP, "output_dtype", asked, "without scale it must be int32")
        return torch.int32
    require(bool(per_token_scale), OP, "per_token_scale", None, "the simulation needs it")
    assert per_token_scale is not None
    shape = (len(stack), stack.shape[2])
    require(
        tuple(scale[0].shape) == shape,
        OP,
        "scale's shape",
        tuple(scale[0].shape),
        f"weight means {shape}",
    )
    require(
        scale[0].dtype in OUTPUT_OF_SCALE,
        OP,
        "scale's dtype",
        scale[0].dtype,
        f"it must be one of {tuple(OUTPUT_OF_SCALE)}",
    )
    out = OUTPUT_OF_SCALE[scale[0].dtype]
    require(asked == out, OP, "output_dtype", asked, f"a scale of {scale[0].dtype} gives {out}")
    token = per_token_scale[0]
    require(
        token.dtype == torch.float32 and tuple(token.shape) == (len(x),),
        OP,
        "per_token_scale",
        f"{token.dtype} {tuple(token.shape)}",
        f"it must be float32 with one number for each of {len(x)} rows",
    )
    return out


def _multiply(x: Tensor, w_KN: Tensor) -> Tensor:
    return product(x, w_KN) if x.dtype == torch.int8 else x.float() @ w_KN.float()
