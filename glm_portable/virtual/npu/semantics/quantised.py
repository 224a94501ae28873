"""INT8: npu_dynamic_quant, npu_quant_matmul, npu_dequant_swiglu_quant, npu_format_cast."""

import torch
import torch.nn.functional as F
from torch import Tensor

from glm_portable.backends.ascend.chip import Chip
from glm_portable.virtual.npu.layout import FRACTAL_NZ, ND, FractalNz
from glm_portable.virtual.npu.refusal import require, values_needed
from glm_portable.virtual.npu.semantics.dtypes import of_argument
from glm_portable.virtual.npu.semantics.undefined import undefined

HALVES = (torch.float16, torch.bfloat16)
INT8_MAX = 127
WIDEST = 65535
GATE_ALIGNMENT, WIDEST_GATE = 64, 10496


def per_token(x: Tensor) -> tuple[Tensor, Tensor]:
    """(codes, scale a row): scale = max|x| / 127; a row of zeros has scale 0 and codes 0."""
    wide = x.float()
    scale = wide.abs().amax(-1) / INT8_MAX
    safe = torch.where(scale > 0, scale, 1.0).unsqueeze(-1)
    return (wide / safe).round().clamp(-128, INT8_MAX).to(torch.int8), scale


def product(x: Tensor, w_KN: Tensor) -> Tensor:
    """x @ w of int8 in int32; float64 holds every partial sum exactly and is fast on a CPU."""
    return (x.double() @ w_KN.double()).to(torch.int32)


def dynamic_quant(
    chip: Chip,
    x: Tensor,
    *,
    smooth_scales: Tensor | None = None,
    group_index: Tensor | None = None,
    dst_type: int | None = None,
    quant_mode: str = "pertoken",
    dst_type_max: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """(int8 codes, a float32 scale for each row)."""
    op = "npu_dynamic_quant"
    require(x.dtype in HALVES, op, "input's dtype", x.dtype, f"it must be one of {HALVES}")
    kind = of_argument(dst_type) or torch.int8
    if kind.is_floating_point:
        require(chip.generation == "A5", op, "dst_type", kind, f"{chip.name} has no FP8")
    require(kind == torch.int8, op, "dst_type", kind, "int8 is what is simulated")
    require(quant_mode == "pertoken", op, "quant_mode", quant_mode, "pertoken is what is simulated")
    require(
        smooth_scales is None and group_index is None,
        op,
        "smooth_scales",
        "given",
        "it is not simulated",
    )
    values_needed(x)
    return per_token(x)


def quant_matmul(
    chip: Chip,
    x1: Tensor,
    x2: Tensor,
    scale: Tensor,
    *,
    offset: Tensor | None = None,
    pertoken_scale: Tensor | None = None,
    bias: Tensor | None = None,
    output_dtype: int | None = None,
    x1_dtype: int | None = None,
    x2_dtype: int | None = None,
    pertoken_scale_dtype: int | None = None,
    scale_dtype: int | None = None,
    group_sizes: list[int] | None = None,
    y_scale: Tensor | None = None,
) -> Tensor:
    """x1 (M, K) @ x2 (K, N), times scale (N) and pertoken_scale (M), plus bias (N)."""
    op = "npu_quant_matmul"
    for argument, value in (("x1", x1), ("x2", x2)):
        if value.dtype.is_floating_point:
            require(
                chip.generation == "A5",
                op,
                f"{argument}'s dtype",
                value.dtype,
                f"{chip.name} has no FP8",
            )
        require(
            value.dtype == torch.int8,
            op,
            f"{argument}'s dtype",
            value.dtype,
            "int8 is what is simulated",
        )
    n = x2.shape[1]
    require(n <= WIDEST, op, "the width of x2", n, f"{WIDEST} is the widest: split the weight")
    out = of_argument(output_dtype) or torch.int8
    require(pertoken_scale is not None, op, "pertoken_scale", None, "the simulation needs it")
    assert pertoken_scale is not None
    rows = len(x1)
    require(
        pertoken_scale.dtype == torch.float32 and tuple(pertoken_scale.shape) == (rows,),
        op,
        "pertoken_scale",
        f"{pertoken_scale.dtype} {tuple(pertoken_scale.shape)}",
        f"it must be float32 with one number for each of {rows} rows",
    )
    allowed = {torch.bfloat16: (torch.float32, torch.bfloat16), torch.float16: (torch.float32,)}
    require(out in allowed, op, "output_dtype", out, f"it must be one of {tuple(allowed)}")
    require(
        scale.dtype in allowed[out],
        op,
        "scale's dtype",
        scale.dtype,
        f"an output of {out} takes one of {allowed[out]}",
    )
    require(
        tuple(scale.shape) in ((n,), (1,)),
        op,
        "scale's shape",
        tuple(scale.shape),
        f"x2 has {n} columns",
    )
    if bias is not None:
        kinds = (torch.int32, torch.float32, out)
        require(bias.dtype in kinds, op, "bias's dtype", bias.dtype, f"it must be one of {kinds}")
        require(
            tuple(bias.shape) == (n,), op, "bias's shape", tuple(bias.shape), f"x2 has {n} columns"
        )
        require(bias.dtype != torch.int32, op, "bias's dtype", bias.dtype, "it is not simulated")
    values_needed(x1)
    y = product(x1, x2).float() * scale.float() * pertoken_scale.unsqueeze(1)
    return (y if bias is None else y + bias.float()).to(out)


def dequant_swiglu_quant(
    chip: Chip,
    x: Tensor,
    *,
    weight_scale: Tensor | None = None,
    activation_scale: Tensor | None = None,
    bias: Tensor | None = None,
    quant_scale: Tensor | None = None,
    quant_offset: Tensor | None = None,
    group_index: Tensor | None = None,
    activate_left: bool = False,
    quant_mode: int = 0,
    dst_type: int | None = None,
    round_mode: int | None = None,
    activate_dim: int | None = None,
    swiglu_mode: int = 0,
    clamp_limit: float = 7.0,
    glu_alpha: float = 1.702,
    glu_bias: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """int32 sums to int8 codes of the gate: (codes, a scale a row); rows of no group undefined."""
    op = "npu_dequant_swiglu_quant"
    require(
        x.dtype == torch.int32 and x.dim() == 2,
        op,
        "x",
        f"{x.dtype} {tuple(x.shape)}",
        "two dimensions of int32 are what is simulated",
    )
    require(quant_mode == 1, op, "quant_mode", quant_mode, "1 (dynamic) is what is simulated")
    require(swiglu_mode == 0, op, "swiglu_mode", swiglu_mode, "0 is what is simulated")
    for argument, given in (
        ("bias", bias),
        ("quant_scale", quant_scale),
        ("quant_offset", quant_offset),
    ):
        require(given is None, op, argument, "given", "it is not simulated")
    tokens, width = x.shape
    require(group_index is not None, op, "group_index", None, "it is what is simulated")
    assert group_index is not None
    half = width // 2
    require(
        width % 2 == 0 and half % GATE_ALIGNMENT == 0 and half <= WIDEST_GATE,
        op,
        "half the width of x",
        half,
        f"with groups it must be a multiple of {GATE_ALIGNMENT} up to {WIDEST_GATE}",
    )
    require(
        group_index.dtype == torch.int64,
        op,
        "group_index's dtype",
        group_index.dtype,
        "it must be int64",
    )
    require(weight_scale is not None, op, "weight_scale", None, "int32 must be dequantised")
    require(activation_scale is not None, op, "activation_scale", None, "int32 must be dequantised")
    assert weight_scale is not None and activation_scale is not None
    shape = (len(group_index), width)
    require(
        weight_scale.dtype == torch.float32 and tuple(weight_scale.shape) == shape,
        op,
        "weight_scale",
        f"{weight_scale.dtype} {tuple(weight_scale.shape)}",
        f"it must be float32 {shape}",
    )
    require(
        activation_scale.dtype == torch.float32 and tuple(activation_scale.shape) == (tokens, 1),
        op,
        "activation_scale",
        f"{activation_scale.dtype} {tuple(activation_scale.shape)}",
        f"it must be float32 {(tokens, 1)}",
    )
    values_needed(x)
    counts = group_index.tolist()
    require(
        min(counts) >= 0 and sum(counts) <= tokens,
        op,
        "group_index",
        counts,
        f"its counts must be at least 0 and at most {tokens} in sum",
    )
    used = sum(counts)
    owner = torch.repeat_interleave(torch.arange(len(counts)), group_index)
    plain = x[:used].float() * weight_scale[owner] * activation_scale[:used]
    left, right = plain.chunk(2, -1)
    gated = F.silu(left) * right if activate_left else F.silu(right) * left
    codes = undefined(tokens, half, dtype=torch.int8)
    scales = undefined(tokens, dtype=torch.float32)
    codes[:used], scales[:used] = per_token(gated)
    return codes, scales


def format_cast(
    chip: Chip,
    x: Tensor,
    acl_format: int,
    *,
    customize_dtype: int | None = None,
    input_dtype: int | None = None,
) -> Tensor:
    """The weight in FRACTAL_NZ, or out of it."""
    op = "npu_format_cast"
    known = "2 and 29 are what is simulated"
    require(acl_format in (ND, FRACTAL_NZ), op, "acl_format", acl_format, known)
    kinds = (torch.int8, *HALVES)
    require(x.dtype in kinds, op, "input's dtype", x.dtype, f"it must be one of {kinds}")
    require(x.dim() >= 2, op, "input's shape", tuple(x.shape), "it must be a matrix or a stack")
    return FractalNz(x.contiguous()) if acl_format == FRACTAL_NZ else x.clone()
