"""Faults of matrix products: tails, accumulators, biases, activations rounded the wrong way."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from glm_portable.backends.reference import quantize_per_token
from glm_portable.ops import Weight
from glm_portable.verify.faults.fault import OPS, Fault, Op

STEP = 128
"""Columns that a kernel multiplies at a time."""
FP8 = torch.float8_e4m3fn


def tail_dropped(honest: Op, x_TR: Tensor, w: Weight, bias_N: Tensor | None = None) -> Any:
    """Columns beyond the last whole step along K are never multiplied."""
    return honest(_without_tail(x_TR), w, bias_N)


def tail_dropped_in_experts(honest: Op, x_TD: Tensor, *rest: Any) -> Any:
    return honest(_without_tail(x_TD), *rest)


def _without_tail(x_TR: Tensor) -> Tensor:
    whole = x_TR.shape[1] // STEP * STEP
    return torch.cat([x_TR[:, :whole], torch.zeros_like(x_TR[:, whole:])], -1)


def accumulated_in_bf16(honest: Op, x_TR: Tensor, w: Weight, bias_N: Tensor | None = None) -> Any:
    """The sum over K is rounded to the activations' type after every 32 columns."""
    total = torch.zeros_like(honest(x_TR, w))
    for begin in range(0, x_TR.shape[1], 32):
        part = torch.zeros_like(x_TR)
        part[:, begin : begin + 32] = x_TR[:, begin : begin + 32]
        total = total + honest(part, w)
    return total if bias_N is None else total + bias_N


def multiplied_in_bf16(honest: Op, x_TR: Tensor, w: Weight, bias_N: Tensor | None = None) -> Any:
    """Activations of wider types are rounded to BF16 for the matrix units."""
    return honest(x_TR.bfloat16().to(x_TR.dtype), w, bias_N)


def bias_twice(honest: Op, x_TR: Tensor, w: Weight, bias_N: Tensor | None = None) -> Any:
    y = honest(x_TR, w, bias_N)
    return y if bias_N is None else y + bias_N


def bias_forgotten(honest: Op, x_TR: Tensor, w: Weight, bias_N: Tensor | None = None) -> Any:
    return honest(x_TR, w)


def bias_shifted(honest: Op, x_TR: Tensor, w: Weight, bias_N: Tensor | None = None) -> Any:
    """Each column gets the bias of the one before."""
    return honest(x_TR, w, None if bias_N is None else bias_N.roll(1))


def rounded_per_tensor(honest: Op, x_TR: Tensor, w: Weight, bias_N: Tensor | None = None) -> Any:
    """One scale for the activations of all tokens."""
    if not w.dynamic_activations:
        return honest(x_TR, w, bias_N)
    rounded = quantize_per_token(x_TR.reshape(1, -1), w.data.dtype).view_as(x_TR)
    return honest(rounded, replace(w, dynamic_activations=False), bias_N)


def rounded_unasked(honest: Op, x_TR: Tensor, w: Weight, bias_N: Tensor | None = None) -> Any:
    """Activations become codes wherever the weight is one, asked for or not."""
    if w.data.dtype in (FP8, torch.int8):
        x_TR = quantize_per_token(x_TR, w.data.dtype)
    return honest(x_TR, w, bias_N)


def zero_row_divided(honest: Op, x_TR: Tensor, w: Weight, bias_N: Tensor | None = None) -> Any:
    """The scale of a row of zeros is 0, and 0 / 0 is NaN."""
    if w.dynamic_activations:
        x_TR = torch.where(x_TR.any(-1, keepdim=True), x_TR, torch.nan)
    return honest(x_TR, w, bias_N)


def zero_row_divided_in_experts(honest: Op, x_TD: Tensor, gate_up: Weight, *rest: Any) -> Any:
    if gate_up.dynamic_activations:
        x_TD = torch.where(x_TD.any(-1, keepdim=True), x_TD, torch.nan)
    return honest(x_TD, gate_up, *rest)


def late_columns_lost(honest: Op, x_TR: Tensor, w: Weight, bias_N: Tensor | None = None) -> Any:
    """What does not fit 16 bits: columns from 65536 on."""
    y = honest(x_TR, w, bias_N)
    return torch.cat([y[:, :65536], torch.zeros_like(y[:, 65536:])], -1)


def truncated_codes(honest: Op, x_TR: Tensor, w: Weight, bias_N: Tensor | None = None) -> Any:
    """Activations are cut to INT8, not rounded."""
    if not w.dynamic_activations or w.data.dtype != torch.int8:
        return honest(x_TR, w, bias_N)
    scale = x_TR.float().abs().amax(-1, keepdim=True).clamp(min=1e-30) / 127
    cut = ((x_TR.float() / scale).trunc() * scale).to(x_TR.dtype)
    return honest(cut, replace(w, dynamic_activations=False), bias_N)


UNPADDED = "the pocket model's widths are whole steps"
UNQUANTISED = "only activations that become codes show it, and the pocket model's rows are alike"

LINEAR = [
    Fault("linear-tail-dropped", "linear", "K that is no multiple of the step (vllm PR#48173)",
          bodies={"linear": tail_dropped}),
    Fault("experts-tail-dropped", "experts", "K that is no multiple of the step (GPTQModel#1730)",
          OPS, UNPADDED, {"experts": tail_dropped_in_experts}),
    Fault("linear-accumulated-in-bf16", "linear", "an accumulator in the output's type",
          bodies={"linear": accumulated_in_bf16}),
    Fault("linear-float32-in-bf16", "linear", "TF32 or BF16 matrix units for float32",
          OPS, "the model is compared in BF16", {"linear": multiplied_in_bf16}),
    Fault("bias-twice", "linear", "bias added in the GEMM's epilogue and after it",
          bodies={"linear": bias_twice}),
    Fault("bias-forgotten", "linear", "attention_bias left at the class default, which is false",
          bodies={"linear": bias_forgotten}),
    Fault("bias-shifted", "linear", "bias pointer off by one column",
          bodies={"linear": bias_shifted}),
    Fault("activations-per-tensor", "linear", "one activation scale a batch, not a token "
          "(vllm#16474)", OPS, UNQUANTISED, {"linear": rounded_per_tensor}),
    Fault("activations-rounded-unasked", "linear", "a w8a16 checkpoint run as w8a8",
          OPS, "the pocket model in FP8 asks for it", {"linear": rounded_unasked}),
    Fault("activations-truncated", "linear", "codes cut, not rounded", OPS,
          "the pocket model's other format is FP8", {"linear": truncated_codes}),
    Fault("linear-late-columns-lost", "linear", "N beyond 65535 (npu_quant_matmul)",
          OPS, "the pocket model's vocabulary is small", {"linear": late_columns_lost}),
    Fault("zero-row-divided", "linear", "padding rows turn into NaN when quantised",
          OPS, "no row of the pocket model is all zeros", {"linear": zero_row_divided}),
    Fault("experts-zero-row-divided", "experts", "padding rows turn into NaN when quantised",
          OPS, "no row of the pocket model is all zeros", {"experts": zero_row_divided_in_experts}),
]  # fmt: skip
