"""Rotary embedding: npu_mrope in its plain (one-section) mode."""

from collections.abc import Sequence

import torch
from torch import Tensor

from glm_portable.backends.ascend.chip import Chip
from glm_portable.virtual.npu.refusal import require, values_needed
from glm_portable.virtual.npu.semantics.rows import FLOATS

OP = "npu_mrope"
ALIGNMENT = 32


def mrope(
    chip: Chip,
    positions: Tensor,
    query: Tensor,
    key: Tensor,
    cos_sin_cache: Tensor,
    head_size: int,
    *,
    mrope_section: Sequence[int] | None = None,
    rotary_mode: str = "half",
    cache_mode: str = "default",
) -> tuple[Tensor, Tensor]:
    """Rotate the first cos_sin_cache.shape[1] numbers of each head; the rest passes through.

    A row of the cache is half cosines, half sines, one angle each.
    """
    rotary = cos_sin_cache.shape[1]
    require(query.dtype in FLOATS, OP, "query's dtype", query.dtype, f"it must be one of {FLOATS}")
    for argument, value in (("key", key), ("cos_sin_cache", cos_sin_cache)):
        require(
            value.dtype == query.dtype,
            OP,
            f"{argument}'s dtype",
            value.dtype,
            f"query's is {query.dtype}",
        )
    if query.dtype != torch.float32:
        require(
            rotary % ALIGNMENT == 0,
            OP,
            "the width of cos_sin_cache",
            rotary,
            f"it must be a multiple of {ALIGNMENT}",
        )
    require(
        rotary <= head_size, OP, "the width of cos_sin_cache", rotary, f"a head has {head_size}"
    )
    require(not any(mrope_section or ()), OP, "mrope_section", mrope_section, "zeros are simulated")
    require(
        rotary_mode == "half" and cache_mode == "default",
        OP,
        "rotary_mode",
        rotary_mode,
        "half with cache_mode default is what is simulated",
    )
    for argument, value in (("query", query), ("key", key)):
        require(
            value.dim() == 2 and value.shape[1] % head_size == 0,
            OP,
            f"{argument}'s shape",
            tuple(value.shape),
            f"it must be tokens by heads of {head_size}",
        )
    require(
        positions.dtype in (torch.int32, torch.int64) and positions.dim() == 1,
        OP,
        "positions",
        f"{positions.dtype} {tuple(positions.shape)}",
        "it must be one integer a token",
    )
    values_needed(query)
    last, rows = int(positions.max()), len(cos_sin_cache)
    require(last < rows, OP, "positions", last, f"cos_sin_cache has {rows} rows")
    cos, sin = cos_sin_cache[positions.long()].float().unsqueeze(1).chunk(2, -1)
    return _turn(query, cos, sin, head_size), _turn(key, cos, sin, head_size)


def _turn(x: Tensor, cos: Tensor, sin: Tensor, head_size: int) -> Tensor:
    heads = torch.unflatten(x, 1, (-1, head_size)).float()
    half = cos.shape[-1]
    low, high, kept = torch.split(heads, [half, half, head_size - 2 * half], dim=-1)
    turned = torch.cat([low * cos - high * sin, high * cos + low * sin, kept], -1)
    return turned.flatten(1).to(x.dtype)
