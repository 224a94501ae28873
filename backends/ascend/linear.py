"""Dense layers, and how weights are laid out for the matrix unit."""

from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from glm_portable.backends.ascend.chip import Chip
from glm_portable.errors import UsageError
from glm_portable.ops import Weight

ND, FRACTAL_NZ = 2, 29
WIDEST = 65535
"""The most columns that npu_quant_matmul takes; a wider weight is split."""


@dataclass(frozen=True)
class Packed:
    """A weight as the operators take it.

    parts: (N, R) if plain, (R, N) if INT8, (E, R, N) for experts; one, or several along N. scale:
    float32 (N) or (E, N). rounded: an expert's scale in BF16, which makes npu_grouped_matmul give
    BF16. Both None if plain.
    """

    parts: tuple[Tensor, ...]
    scale: Tensor | None = None
    rounded: Tensor | None = None


def pack(npu: Any, chip: Chip, w: Weight) -> Weight:
    """Plain weights stay rows; INT8 with dynamic activations becomes (R, N) in FRACTAL_NZ.

    INT8 without activation quantisation is dequantised: no operator here multiplies it as it is.
    Raises UsageError for FP8, for a type other than BF16 and for blocks of INT8 scales.
    """
    if w.dtype != torch.bfloat16:
        raise UsageError(f"backend 'ascend' computes in bfloat16, not in {w.dtype}.")
    if w.data.dtype.itemsize == 1 and w.data.dtype.is_floating_point:
        raise UsageError(
            f"{chip.name} does not multiply FP8 ({w.data.dtype}) weights as they are: load the "
            "checkpoint as BF16 (twice the memory) or requantise it with --quantization w8a8."
        )
    if w.scale is None:
        return _plain(w)
    if not w.dynamic_activations or w.block is not None:
        return _plain(Weight(w.dequantize(), w.dtype))
    scale = w.scale.to(torch.float32).flatten(-2).contiguous()
    parts = torch.split(w.data, WIDEST, dim=-2) if w.data.dim() == 2 else (w.data,)
    tiles = tuple(npu.npu_format_cast(p.mT.contiguous(), FRACTAL_NZ) for p in parts)
    rounded = scale.to(torch.bfloat16) if w.data.dim() == 3 else None
    packed = Packed(tiles, scale, rounded)
    return replace(w, data=w.data.new_empty(0), scale=None, packed=packed)


def _plain(w: Weight) -> Weight:
    """Experts as (E, R, N) for the grouped product, and only so: they are most of the memory.

    A single matrix stays (N, R) for torch's linear.
    """
    if w.data.dim() == 2:
        return replace(w, packed=Packed((w.data,)))
    return replace(w, data=w.data.new_empty(0), packed=Packed((w.data.mT.contiguous(),)))


def rows(npu: Any, x: Tensor) -> Tensor:
    """One of the parts of a weight in the plain format; those of INT8 are copied."""
    if x.dtype != torch.int8:
        return x
    y: Tensor = npu.npu_format_cast(x, ND)
    return y


def packed_of(w: Weight) -> Packed:
    """What `pack` made."""
    assert isinstance(w.packed, Packed), "the weight was not packed by this backend"
    return w.packed


def linear(npu: Any, x_TR: Tensor, w: Weight, bias_N: Tensor | None = None) -> Tensor:
    """x @ w.T + bias, with the activations rounded per token where the weight is INT8."""
    packed = packed_of(w)
    if packed.scale is None:
        return F.linear(x_TR, packed.parts[0], bias_N)
    x, x_scale = npu.npu_dynamic_quant(x_TR)
    columns, begin = [], 0
    for part in packed.parts:
        end = begin + part.shape[1]
        bias = None if bias_N is None else bias_N[begin:end]
        columns.append(
            npu.npu_quant_matmul(
                x,
                part,
                packed.scale[begin:end],
                pertoken_scale=x_scale,
                bias=bias,
                output_dtype=x_TR.dtype,
            )
        )
        begin = end
    return columns[0] if len(columns) == 1 else torch.cat(columns, dim=-1)
