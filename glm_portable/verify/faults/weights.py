"""Faults of packing: codes read in the wrong dialect, scales in the wrong place."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from glm_portable.ops import Weight
from glm_portable.verify.faults.fault import OPS, Body, Fault, Op

FP8, FNUZ, E5M2 = torch.float8_e4m3fn, torch.float8_e4m3fnuz, torch.float8_e5m2
NAN_CODE, NEGATIVE_ZERO = 0x7F, 0x80


def repacked(change: Callable[[Weight], Weight], honest: Op, w: Weight) -> Any:
    """Quantised weights are changed before they are packed; others are as they were."""
    return honest(w if w.scale is None else change(w))


def scaled(change: Callable[[Tensor], Tensor]) -> Callable[[Weight], Weight]:
    """A change of the scales alone."""

    def changed(w: Weight) -> Weight:
        assert w.scale is not None
        return replace(w, scale=change(w.scale))

    return changed


def codes(change: Callable[[Tensor], Tensor]) -> Callable[[Weight], Weight]:
    """A change of FP8 codes, seen as bytes."""

    def changed(w: Weight) -> Weight:
        if w.data.dtype != FP8:
            return w
        return replace(w, data=change(w.data.view(torch.uint8)).view(FP8))

    return changed


def as_fnuz(w: Weight) -> Weight:
    """OCP's bits read as FNUZ's and the scale not doubled: half the value, and -0 is NaN."""
    if w.data.dtype != FP8 or w.scale is None:
        return w
    return replace(codes(negative_zero_is_nan)(w), scale=w.scale / 2)


def negative_zero_is_nan(bits: Tensor) -> Tensor:
    return torch.where(bits == NEGATIVE_ZERO, NAN_CODE, bits)


def subnormals_flushed(bits: Tensor) -> Tensor:
    """Codes with exponent 0 are read as 0."""
    return torch.where((bits & 0x78) == 0, bits & 0x80, bits)


def largest_lost(bits: Tensor) -> Tensor:
    """448 does not fit FNUZ's 240 where nobody doubled the scale: codes above it are clipped."""
    magnitude = (bits & 0x7F).clamp(max=0x77)  # 240
    return magnitude | (bits & 0x80)


def as_e5m2(w: Weight) -> Weight:
    """Bits read with five exponent bits."""
    if w.data.dtype != FP8:
        return w
    values = w.data.view(torch.uint8).view(E5M2).float().nan_to_num(0, 448, -448)
    return replace(w, data=values.clamp(-448, 448).to(FP8))


def unsigned(w: Weight) -> Weight:
    """INT8 codes lose their sign."""
    return w if w.data.dtype != torch.int8 else replace(w, data=w.data.abs())


def of_neighbour(scale: Tensor) -> Tensor:
    """Every output column (or row of blocks) has the scale of the one before."""
    return scale.roll(1, -2)


def block_column_shifted(w: Weight) -> Weight:
    assert w.scale is not None
    return w if w.block is None else replace(w, scale=w.scale.roll(1, -1))


def blocks_transposed(w: Weight) -> Weight:
    if w.block is None or w.scale is None:
        return w
    return replace(w, scale=w.scale.mT.reshape(w.scale.shape))


def block_edges_shifted(w: Weight) -> Weight:
    """The first columns of a block take the scale of the block before, as if it were larger."""
    if w.block is None or w.scale is None:
        return w
    rows, columns = w.block
    late = w.scale_per_element().roll(columns // 8, -1)
    late[..., : columns // 8] = w.scale_per_element()[..., : columns // 8]
    values = w.data.float() * late
    return Weight(values.to(w.dtype), w.dtype)


def last_block_unscaled(w: Weight) -> Weight:
    """The rest behind the last whole block uses that block's scale."""
    if w.block is None or w.scale is None or w.scale.shape[-2] < 2:
        return w
    scale = w.scale.clone()
    scale[..., -1, :] = scale[..., -2, :]
    return replace(w, scale=scale)


def unscaled(w: Weight) -> Weight:
    """Codes taken for values."""
    assert w.scale is not None
    return replace(w, scale=torch.ones_like(w.scale))


def mean_scale(scale: Tensor) -> Tensor:
    return scale.mean((-2, -1), keepdim=True).expand(scale.shape).contiguous()


def of_first_expert(w: Weight) -> Weight:
    """All experts share the scales of the first."""
    if w.scale is None or w.data.dim() < 3:
        return w
    return replace(w, scale=w.scale[:1].expand(w.scale.shape).contiguous())


def halves_swapped(honest: Op, w: Weight) -> Any:
    """Up where gate should be: only stacked weights that have twice as many rows as columns."""
    if w.data.dim() < 3 or w.data.shape[-2] % 2:
        return honest(w)
    half = w.data.shape[-2] // 2
    data = torch.cat([w.data[..., half:, :], w.data[..., :half, :]], -2)
    if w.scale is None or w.block is not None:
        return honest(replace(w, data=data))
    scale = torch.cat([w.scale[..., half:, :], w.scale[..., :half, :]], -2)
    return honest(replace(w, data=data, scale=scale))


def experts_shifted(honest: Op, w: Weight) -> Any:
    """Every expert has its neighbour's weights."""
    if w.data.dim() < 3:
        return honest(w)
    scale = None if w.scale is None else w.scale.roll(1, 0)
    return honest(replace(w, data=w.data.roll(1, 0), scale=scale))


RANGE = "the pocket model's codes spread over the whole range, and few are such"
BLOCKS = "the pocket model in FP8 has a scale a channel"


def _fault(name: str, change: Callable[[Weight], Weight], stands_for: str, why: str = "") -> Fault:
    body: Body = partial(repacked, change)
    levels = {"levels": OPS, "why": why} if why else {}
    return Fault(name, "pack", stands_for, bodies={"pack": body}, format="fp8", **levels)  # type: ignore[arg-type]  # of two kinds


WEIGHTS = [
    _fault("fnuz-read-as-ocp", as_fnuz, "OCP bits read as FNUZ on gfx942 (vllm PR#12134)"),
    _fault("fnuz-scale-twice", scaled(lambda s: s * 2), "scale doubled at load and in the kernel "
           "(vllm PR#7210)"),
    _fault("negative-zero-is-nan", codes(negative_zero_is_nan), "0x80 is NaN in FNUZ"),
    _fault("fp8-subnormals-flushed", codes(subnormals_flushed), "conversion without subnormals",
           RANGE),
    _fault("fp8-clipped-to-240", codes(largest_lost), "448 clipped to FNUZ's 240"),
    _fault("fp8-read-as-e5m2", as_e5m2, "the other FP8 type"),
    _fault("int8-unsigned", unsigned, "signed codes read as unsigned", BLOCKS),
    _fault("scale-forgotten", unscaled, "scale not applied (vllm#31757)"),
    _fault("scale-of-neighbour", scaled(of_neighbour), "scale index off by one column"),
    _fault("scale-per-tensor", scaled(mean_scale), "one scale where there is one a channel "
           "(vllm#16474)"),
    _fault("scale-of-first-expert", of_first_expert, "scale pointer not moved to the expert"),
    _fault("block-scale-transposed", blocks_transposed, "scale layout N x K for K x N", BLOCKS),
    _fault("block-index-off-by-one", block_column_shifted, "scale of the block before", BLOCKS),
    _fault("block-edges-shifted", block_edges_shifted, "blocks counted in larger steps", BLOCKS),
    _fault("rest-block-forgotten", last_block_unscaled, "192 columns, blocks of 128 "
           "(vllm PR#48173)", BLOCKS),
    Fault("gate-up-swapped", "pack", "gate and up merged in the other order",
          bodies={"pack": halves_swapped}),
    Fault("experts-shifted", "pack", "expert index off by one", bodies={"pack": experts_shifted}),
]  # fmt: skip
