"""Attention over pages: npu_fused_infer_attention_score in its TND layout."""

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from glm_portable.backends.ascend.chip import Chip
from glm_portable.virtual.npu.refusal import require, values_needed
from glm_portable.virtual.npu.semantics.quantised import HALVES

OP = "npu_fused_infer_attention_score"
CAUSAL = 3
MASK = 2048
MOST_SEQUENCES, MOST_HEADS, MOST_HEADS_A_GROUP = 4096, 256, 64
HEAD_SIZES = (128, 192)
PAGE_STEP, LARGEST_PAGE = 16, 1024


def fused_infer_attention_score(
    chip: Chip,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    atten_mask: Tensor | None = None,
    actual_seq_lengths: Sequence[int] | None = None,
    actual_seq_lengths_kv: Sequence[int] | None = None,
    block_table: Tensor | None = None,
    num_heads: int = 1,
    scale: float = 1.0,
    input_layout: str = "BSH",
    num_key_value_heads: int = 0,
    sparse_mode: int = 0,
    inner_precise: int = 0,
    block_size: int = 0,
    softmax_lse_flag: bool = False,
    **others: Any,
) -> tuple[Tensor, Tensor]:
    """(attention of each token to the cached ones up to itself (T, N, D), nothing).

    actual_seq_lengths ends each sequence's queries, cumulatively; actual_seq_lengths_kv counts
    each sequence's keys, since they lie in pages.
    """
    for argument, given in others.items():
        require(given is None, OP, argument, "given", "it is not simulated")
    require(input_layout == "TND", OP, "input_layout", input_layout, "TND is what is simulated")
    require(not softmax_lse_flag, OP, "softmax_lse_flag", True, "it is not simulated")
    groups = num_key_value_heads or num_heads
    _check_heads(chip, query, key, value, num_heads, groups)
    require(scale != 1.0, OP, "scale", scale, "that is the default, and attention needs its own")
    ends = _query_ends(actual_seq_lengths, len(query))
    require(block_table is not None, OP, "block_table", None, "pages are what is simulated")
    assert block_table is not None
    lengths = _kv_lengths(actual_seq_lengths_kv, ends, block_table, block_size)
    _check_pages(key, value, block_table, block_size, groups * query.shape[-1])
    atten_mask = _checked_mask(atten_mask, sparse_mode)
    values_needed(query)
    inside = bool(((block_table >= 0) & (block_table < len(key))).all())
    require(inside, OP, "block_table", block_table.tolist(), f"there are {len(key)} pages")
    _check_polarity(atten_mask)
    outputs, begin = [], 0
    for row, end, length in zip(block_table, ends, lengths, strict=True):
        keys, values = (
            torch.unflatten(_cached(pages, row, length, block_size), 1, (groups, -1))
            for pages in (key, value)
        )
        outputs.append(_causal(query[begin:end], keys, values, scale))
        begin = end
    return torch.cat(outputs), torch.empty(0)


def _check_heads(
    chip: Chip, query: Tensor, key: Tensor, value: Tensor, heads: int, groups: int
) -> None:
    for argument, given in (("query", query), ("key", key), ("value", value)):
        require(
            given.dtype in HALVES,
            OP,
            f"{argument}'s dtype",
            given.dtype,
            f"it must be one of {HALVES}",
        )
        require(
            given.dtype == query.dtype,
            OP,
            f"{argument}'s dtype",
            given.dtype,
            f"query's is {query.dtype}",
        )
    require(query.is_contiguous(), OP, "query's strides", query.stride(), "it must be contiguous")
    require(
        query.dim() == 3 and query.shape[1] == heads,
        OP,
        "num_heads",
        heads,
        f"query has the shape {tuple(query.shape)}",
    )
    require(heads <= MOST_HEADS, OP, "num_heads", heads, f"{MOST_HEADS} is the most")
    require(
        heads % groups == 0 and heads // groups <= MOST_HEADS_A_GROUP,
        OP,
        "num_key_value_heads",
        groups,
        f"it must divide {heads} heads into groups of at most {MOST_HEADS_A_GROUP}",
    )
    if chip.generation != "A5":
        require(
            query.shape[-1] in HEAD_SIZES,
            OP,
            "the head size",
            query.shape[-1],
            f"TND takes one of {HEAD_SIZES} on {chip.name}",
        )


def _query_ends(ends: Sequence[int] | None, tokens: int) -> Sequence[int]:
    require(ends is not None, OP, "actual_seq_lengths", None, "TND needs it")
    assert ends is not None
    require(
        len(ends) <= MOST_SEQUENCES,
        OP,
        "the number of sequences",
        len(ends),
        f"{MOST_SEQUENCES} is the most",
    )
    rising = all(a <= b for a, b in zip([0, *ends], ends, strict=False))
    require(
        rising and ends[-1] == tokens,
        OP,
        "actual_seq_lengths",
        list(ends),
        f"in TND it is a running sum that ends at query's {tokens} tokens",
    )
    return ends


def _kv_lengths(
    lengths: Sequence[int] | None, ends: Sequence[int], table: Tensor, page: int
) -> Sequence[int]:
    require(lengths is not None, OP, "actual_seq_lengths_kv", None, "pages need it")
    assert lengths is not None
    require(
        len(lengths) == len(ends),
        OP,
        "actual_seq_lengths_kv's length",
        len(lengths),
        f"there are {len(ends)} sequences",
    )
    require(
        len(table) == len(ends),
        OP,
        "block_table's rows",
        len(table),
        f"there are {len(ends)} sequences",
    )
    counts = [end - begin for begin, end in zip([0, *ends], ends, strict=False)]
    for length, count in zip(lengths, counts, strict=True):
        require(
            count <= length <= table.shape[1] * page,
            OP,
            "actual_seq_lengths_kv",
            list(lengths),
            "with pages it is each sequence's own number of tokens, at least its"
            f" queries ({counts}) and at most its {table.shape[1]} pages of {page}",
        )
    return lengths


def _check_pages(key: Tensor, value: Tensor, table: Tensor, page: int, width: int) -> None:
    require(table.dtype == torch.int32, OP, "block_table's dtype", table.dtype, "it must be int32")
    require(
        page % PAGE_STEP == 0 and 0 < page <= LARGEST_PAGE,
        OP,
        "block_size",
        page,
        f"in TND it must be a multiple of {PAGE_STEP} up to {LARGEST_PAGE}",
    )
    for argument, pages in (("key", key), ("value", value)):
        require(
            tuple(pages.shape[1:]) == (page, width),
            OP,
            f"{argument}'s shape",
            tuple(pages.shape),
            f"pages of {page} tokens of width {width} are meant",
        )
        require(
            pages.is_contiguous(),
            OP,
            f"{argument}'s strides",
            pages.stride(),
            "it must be contiguous",
        )


def _checked_mask(mask: Tensor | None, sparse_mode: int) -> Tensor:
    require(sparse_mode == CAUSAL, OP, "sparse_mode", sparse_mode, "3 (causal) is simulated")
    require(mask is not None, OP, "atten_mask", None, "sparse_mode 3 needs it")
    assert mask is not None
    kinds = (torch.bool, torch.int8, torch.uint8)
    require(mask.dtype in kinds, OP, "atten_mask's dtype", mask.dtype, f"it must be one of {kinds}")
    require(
        tuple(mask.shape) == (MASK, MASK),
        OP,
        "atten_mask's shape",
        tuple(mask.shape),
        f"sparse_mode 3 takes {MASK} by {MASK}",
    )
    return mask


def _check_polarity(mask: Tensor) -> None:
    require(
        torch.equal(mask.bool(), _above_diagonal()),
        OP,
        "atten_mask",
        f"{int(mask.sum())} ones",
        "1 hides a key: ones belong above the diagonal and nowhere else",
    )


@functools.cache
def _above_diagonal() -> Tensor:
    return torch.ones(MASK, MASK, dtype=torch.bool).triu_(1)


def _cached(pages: Tensor, row: Tensor, length: int, page: int) -> Tensor:
    """The keys or values of one sequence: (length, width)."""
    return pages[row[: -(-length // page)].long()].flatten(0, 1)[:length]


def _causal(q_QND: Tensor, k_LGD: Tensor, v_LGD: Tensor, scale: float) -> Tensor:
    """The last queries of a sequence over all its keys, softmax in float32."""
    count, length = len(q_QND), len(k_LGD)
    q = torch.unflatten(q_QND.float(), 1, (k_LGD.shape[1], -1))
    scores = torch.einsum("qgmd,lgd->gmql", q, k_LGD.float()) * scale
    future = torch.ones(count, length, dtype=torch.bool).triu_(length - count + 1)
    p = scores.masked_fill(future, float("-inf")).softmax(-1)
    return torch.einsum("gmql,lgd->qgmd", p, v_LGD.float()).flatten(1, 2).to(q_QND.dtype)
