"""Writing keys and values into pages: npu_scatter_pa_kv_cache."""

import torch
from torch import Tensor

from glm_portable.backends.ascend.chip import Chip
from glm_portable.virtual.npu.refusal import require, values_needed

OP = "npu_scatter_pa_kv_cache"


def scatter_pa_kv_cache(
    chip: Chip,
    key: Tensor,
    value: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    slot_mapping: Tensor,
    *,
    compress_lens: Tensor | None = None,
    compress_seq_offsets: Tensor | None = None,
    seq_lens: Tensor | None = None,
    cache_mode: str = "PA_NZ",
) -> None:
    """Token t goes to slot slot_mapping[t] = page * page size + offset."""
    require(
        cache_mode == "Norm",
        OP,
        "cache_mode",
        cache_mode,
        "pages (blocks, page size, heads, head size) need 'Norm'; the default PA_NZ writes "
        "tiles into them",
    )
    require(
        compress_lens is None and compress_seq_offsets is None and seq_lens is None,
        OP,
        "compress_lens",
        "given",
        "it is not simulated",
    )
    kinds = (torch.int32, torch.int64)
    require(
        slot_mapping.dtype in kinds,
        OP,
        "slot_mapping's dtype",
        slot_mapping.dtype,
        f"it must be one of {kinds}",
    )
    room = key_cache.shape[0] * key_cache.shape[1]
    require(
        len(slot_mapping) == len(key),
        OP,
        "slot_mapping's length",
        len(slot_mapping),
        f"there are {len(key)} tokens",
    )
    for argument, rows, pages in (("key", key, key_cache), ("value", value, value_cache)):
        require(
            rows.is_contiguous(),
            OP,
            f"{argument}'s strides",
            rows.stride(),
            "it must be contiguous",
        )
        require(
            pages.is_contiguous(),
            OP,
            f"{argument}_cache's strides",
            pages.stride(),
            "it must be contiguous",
        )
        require(
            rows.dtype == pages.dtype,
            OP,
            f"{argument}'s dtype",
            rows.dtype,
            f"the cache's is {pages.dtype}",
        )
        require(
            pages.shape[2:] == rows.shape[1:],
            OP,
            f"{argument}'s shape",
            tuple(rows.shape),
            f"the cache's is {tuple(pages.shape)}",
        )
    values_needed(key, slot_mapping)
    slots = slot_mapping.long()
    inside = bool(((slots >= 0) & (slots < room)).all())
    require(inside, OP, "slot_mapping", slots.tolist(), f"there are {room} slots")
    require(
        len(set(slots.tolist())) == len(slots),
        OP,
        "slot_mapping",
        slots.tolist(),
        "no slot may come twice",
    )
    for rows, pages in ((key, key_cache), (value, value_cache)):
        pages.view(room, *pages.shape[2:])[slots] = rows
