"""Causal grouped-query attention over paged keys and values, for any mix of sequences.

One kernel serves decode, verification of a few drafted tokens, prefill and chunks of it. A tile's
rows are (query, head of the group) pairs, so the 12 query heads that share a key/value head read
its keys once. Online softmax (Dao et al. 2022) in base 2 and float32.

Short queries split the keys over programs, and `merge_kernel` adds up the parts (Flash-Decoding).
Where a sequence is cut depends on its own length alone: its result has the same bits whatever else
runs in the step. Grids follow from shapes and from the host's copy of the lengths.

On request (`alike`) a query's bits do not depend on the other queries of its sequence either:
decode, verification and every cut of a prompt are then one kernel in one shape, which reads all
keys in order and gives every block of them the same instructions.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from glm_portable.kernels.launch import Launch
from glm_portable.kernels.target import Target
from glm_portable.ops import KVCache, Step

SHORT = 8
"""Queries of a sequence up to which its keys are split: decode, and verification of drafts."""
LEAST_SPLIT = 256
"""Keys in a split at least, and a multiple of every block of keys."""
MOST_SPLITS = 32
ALIKE_ROWS = 64
"""Rows of every tile with `alike`: 5 queries of 12 heads. More would slow down decode."""
ALIKE_SEQUENCES = 1024
"""Up to as many in a step share one machine code."""
LOG2_E = 1.4426950408889634


@triton.jit
def _split_keys(length, LEAST_SPLIT: tl.constexpr, MOST_SPLITS: tl.constexpr):
    """Keys in each split of a sequence: a multiple of LEAST_SPLIT, at most MOST_SPLITS of them."""
    return tl.cdiv(tl.cdiv(length, MOST_SPLITS), LEAST_SPLIT) * LEAST_SPLIT


@triton.jit
def _keys_step(
    q, top, norm, total, k_ptr, v_ptr, table_ptr, start, length, seen, page_stride, slot_stride,
    scale, MASKED: tl.constexpr, S: tl.constexpr, C: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Online softmax over keys start to start + BLOCK_N. seen: the last key of each row.

    MASKED is off for blocks that every row sees as a whole. Pages hold old numbers beyond a
    sequence's end, even NaN: those values are not loaded, as 0 times NaN would be NaN.
    """
    offs_n = start + tl.arange(0, BLOCK_N)
    offs_c = tl.arange(0, C)
    rows = tl.arange(0, BLOCK_N)  # of a block, which begins at a multiple of its size
    if S % BLOCK_N == 0:  # in one page: a scalar address, and offsets that no step changes
        page = tl.load(table_ptr + start // S).to(tl.int64)
        first = page * page_stride + start % S * slot_stride
        k_ptr += first
        v_ptr += first
        base = rows * slot_stride
    else:
        if BLOCK_N % S == 0:  # in whole pages
            entries, slots = table_ptr + start // S + rows // S, rows % S
        else:
            entries, slots = table_ptr + offs_n // S, offs_n % S
        if MASKED:
            page = tl.load(entries, mask=offs_n < length, other=0).to(tl.int64)
        else:
            page = tl.load(entries).to(tl.int64)
        base = page * page_stride + slots * slot_stride
    k = tl.load(k_ptr + base[None, :] + offs_c[:, None]).to(q.dtype)
    scores = tl.dot(q, k, input_precision="ieee")
    if MASKED:
        scores = tl.where(offs_n[None, :] <= seen[:, None], scores, -float("inf"))
    # The scale is positive: it may follow the maximum, and is then part of one fused instruction.
    new_top = tl.maximum(top, tl.max(scores, axis=1) * scale)
    if MASKED:  # a row that has seen nothing yet: keep inf - inf out
        shift = tl.where(new_top == -float("inf"), 0.0, new_top)
    else:
        shift = new_top
    weights = tl.exp2(scores * scale - shift[:, None])
    keep = tl.exp2(top - shift)
    norm = norm * keep + tl.sum(weights, axis=1)
    if MASKED:
        v_mask = offs_n[:, None] < length
        v = tl.load(v_ptr + base[:, None] + offs_c[None, :], mask=v_mask, other=0.0).to(q.dtype)
    else:
        v = tl.load(v_ptr + base[:, None] + offs_c[None, :]).to(q.dtype)
    total = tl.dot(weights.to(q.dtype), v, total * keep[:, None], input_precision="ieee")
    return new_top, norm, total


@triton.jit(do_not_specialize=("B", "table_stride", "least", "most"))  # steps differ in these
def attend_kernel(
    q_ptr, k_ptr, v_ptr, table_ptr, ends_ptr, lengths_ptr, out_ptr, parts_ptr, stats_ptr,
    B, H, q_stride, q_head_stride, page_stride, slot_stride, group_stride, table_stride,
    scale, v_scale, least, most,
    GROUP: tl.constexpr, S: tl.constexpr, C: tl.constexpr, SPLITS: tl.constexpr,
    QUERIES: tl.constexpr, LEAST_SPLIT: tl.constexpr, MOST_SPLITS: tl.constexpr,
    BLOCK_B: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, ALIKE: tl.constexpr,
):  # fmt: skip
    """Programs (block of queries, key/value head, split of the keys).

    Sequences with fewer than `least` or more than `most` queries are left to another launch.
    QUERIES: the most queries of a sequence, or 0 where they are many: how programs are dealt out.
    SPLITS: 0 writes the result, otherwise each split writes its part, and its row's maximum and
    sum, for QUERIES rows a sequence.
    ALIKE: all blocks of keys are masked. Which of them need it depends on the tile's other queries,
    and nothing obliges a compiler to round alike in two loops. A block of which a row sees no key
    multiplies by 1 and adds zeros.
    """
    group = tl.program_id(1)
    split = tl.program_id(2)
    TILE: tl.constexpr = BLOCK_M // GROUP
    if QUERIES > 0:
        sequence = tl.program_id(0) // tl.cdiv(QUERIES, TILE)
        begin = tl.load(ends_ptr + sequence - 1, mask=sequence > 0, other=0)
        first = tl.program_id(0) % tl.cdiv(QUERIES, TILE) * TILE
    else:
        # Sequence b has its blocks from block (queries before it) / TILE + b on; that is at least
        # as many as it needs, and the grid is known without looking at the lengths.
        b = tl.arange(0, BLOCK_B)
        begins = tl.load(ends_ptr + b - 1, mask=(b > 0) & (b < B), other=0)
        before = (b < B) & (begins // TILE + b <= tl.program_id(0))
        sequence = tl.sum(before.to(tl.int32)) - 1
        begin = tl.sum(tl.where(b == sequence, begins, 0))
        first = (tl.program_id(0) - (begin // TILE + sequence)) * TILE
    queries = tl.load(ends_ptr + sequence) - begin
    if (first >= queries) | (queries < least) | (queries > most):
        return
    length = tl.load(lengths_ptr + sequence)
    offs_m = tl.arange(0, BLOCK_M)
    query = first + offs_m // GROUP
    head = group * GROUP + offs_m % GROUP
    live = (offs_m < TILE * GROUP) & (query < queries)
    start, end = 0, tl.minimum(length, length - queries + first + TILE)
    if SPLITS > 0:
        keys = _split_keys(length, LEAST_SPLIT, MOST_SPLITS)
        start = split * keys
        end = tl.minimum(end, start + keys)
        if split * keys >= length:
            return
    offs_c = tl.arange(0, C)
    q_row = (begin + query).to(tl.int64) * q_stride + head * q_head_stride
    q = tl.load(q_ptr + q_row[:, None] + offs_c[None, :], mask=live[:, None], other=0.0)
    # Rows that stand for nothing see what the first query sees: they must not be all masked.
    seen = length - queries + tl.where(live, query, first)
    top = tl.full((BLOCK_M,), -float("inf"), tl.float32)
    norm = tl.zeros((BLOCK_M,), tl.float32)
    total = tl.zeros((BLOCK_M, C), tl.float32)
    k_ptr += group * group_stride
    v_ptr += group * group_stride
    table_ptr += sequence.to(tl.int64) * table_stride
    if ALIKE:
        whole = start
    else:  # Whole blocks that even the first query sees need no mask.
        whole = tl.minimum(end, length - queries + first + 1)
        whole = start + tl.maximum(whole - start, 0) // BLOCK_N * BLOCK_N
    for n in range(start, whole, BLOCK_N):
        top, norm, total = _keys_step(
            q, top, norm, total, k_ptr, v_ptr, table_ptr, n, length, seen,
            page_stride, slot_stride, scale, False, S, C, BLOCK_N,
        )  # fmt: skip
    for n in range(whole, end, BLOCK_N):
        top, norm, total = _keys_step(
            q, top, norm, total, k_ptr, v_ptr, table_ptr, n, length, seen,
            page_stride, slot_stride, scale, True, S, C, BLOCK_N,
        )  # fmt: skip
    if SPLITS > 0:
        row = ((sequence * QUERIES + query).to(tl.int64) * H + head) * SPLITS + split
        tl.store(parts_ptr + row[:, None] * C + offs_c[None, :], total, mask=live[:, None])
        tl.store(stats_ptr + row * 2, top, mask=live)
        tl.store(stats_ptr + row * 2 + 1, norm, mask=live)
    else:
        row = (begin + query).to(tl.int64) * H + head
        result = (total / norm[:, None] * v_scale).to(out_ptr.dtype.element_ty)
        tl.store(out_ptr + row[:, None] * C + offs_c[None, :], result, mask=live[:, None])


@triton.jit
def merge_kernel(
    parts_ptr, stats_ptr, ends_ptr, lengths_ptr, out_ptr, H, v_scale, most,
    C: tl.constexpr, SPLITS: tl.constexpr, QUERIES: tl.constexpr,
    LEAST_SPLIT: tl.constexpr, MOST_SPLITS: tl.constexpr, BLOCK_H: tl.constexpr,
):  # fmt: skip
    """Programs (sequence, its query, block of heads): add up the splits of some heads."""
    sequence, query = tl.program_id(0), tl.program_id(1)
    begin = tl.load(ends_ptr + sequence - 1, mask=sequence > 0, other=0)
    queries = tl.load(ends_ptr + sequence) - begin
    if (query >= queries) | (queries > most):
        return
    length = tl.load(lengths_ptr + sequence)
    head = tl.program_id(2) * BLOCK_H + tl.arange(0, BLOCK_H)
    live = head < H
    offs_c = tl.arange(0, C)
    row = ((sequence * QUERIES + query).to(tl.int64) * H + head) * SPLITS
    top = tl.full((BLOCK_H,), -float("inf"), tl.float32)
    norm = tl.zeros((BLOCK_H,), tl.float32)
    total = tl.zeros((BLOCK_H, C), tl.float32)
    for split in range(tl.cdiv(length, _split_keys(length, LEAST_SPLIT, MOST_SPLITS))):
        # The first split has keys for every query, so `top` is finite from then on.
        split_top = tl.load(stats_ptr + (row + split) * 2, mask=live, other=0.0)
        split_norm = tl.load(stats_ptr + (row + split) * 2 + 1, mask=live, other=1.0)
        part_ptrs = parts_ptr + (row + split)[:, None] * C + offs_c[None, :]
        part = tl.load(part_ptrs, mask=live[:, None], other=0.0)
        new_top = tl.maximum(top, split_top)
        keep, take = tl.exp2(top - new_top), tl.exp2(split_top - new_top)
        norm = norm * keep + split_norm * take
        total = total * keep[:, None] + part * take[:, None]
        top = new_top
    out = (begin + query).to(tl.int64) * H + head
    result = (total / norm[:, None] * v_scale).to(out_ptr.dtype.element_ty)
    tl.store(out_ptr + out[:, None] * C + offs_c[None, :], result, mask=live[:, None])


def attend(
    launch: Launch,
    target: Target,
    q_THC: Tensor,
    cache: KVCache,
    step: Step,
    scale: float,
    alike: bool = False,
) -> Tensor:
    """softmax(q k^T * scale + causal mask) v in q's type, contiguous (T, H, C).

    C is a power of two of at least 16, H a multiple of the cache's heads G. See `ops.Step`.
    alike: give a query the same bits whatever part of its sequence it comes with, as long as that
    is finite. No keys are split then: long sequences that are few take longer.
    """
    queries = [e - b for b, e in zip((0, *step.query_ends[:-1]), step.query_ends, strict=True)]
    out = torch.empty(q_THC.shape, dtype=q_THC.dtype, device=q_THC.device)
    if alike:
        _launch(launch, target, q_THC, cache, step, scale, out, 0, 1, alike=True)
        return out
    short = [n for n in queries if n <= SHORT]
    if short:
        longest = max(n for n, q in zip(step.kv_lengths, queries, strict=True) if q <= SHORT)
        splits = most_splits(longest)
        _launch(launch, target, q_THC, cache, step, scale, out, max(short), splits)
    if len(short) < len(queries):
        _launch(launch, target, q_THC, cache, step, scale, out, 0, 1)
    return out


def most_splits(longest: int) -> int:
    """Splits of any sequence up to that length: a longer one may have fewer (8,193 keys: 17)."""
    return min(MOST_SPLITS, -(-longest // LEAST_SPLIT))


def split_keys(length: int) -> int:
    """Keys in each split of a sequence of that length, as the kernels compute it."""
    share = -(-length // MOST_SPLITS)
    return -(-share // LEAST_SPLIT) * LEAST_SPLIT


def _launch(
    launch: Launch,
    target: Target,
    q_THC: Tensor,
    cache: KVCache,
    step: Step,
    scale: float,
    out: Tensor,
    short: int,
    splits: int,
    alike: bool = False,
) -> None:
    """The sequences of at most `short` queries; with short = 0, those that are long, or all."""
    tokens, heads, size = q_THC.shape
    (_, slots, groups, _), sequences = cache.k_PSGC.shape, len(step.query_ends)
    group = heads // groups
    assert q_THC.stride(-1) == 1 and size >= 16 and size == triton.next_power_of_2(size)
    assert cache.k_PSGC.is_contiguous() and cache.v_PSGC.is_contiguous()
    wide = q_THC.dtype.itemsize == 4
    block_m = _block_m(group, short, ALIKE_ROWS if wide or alike else 128)
    block_n = 32 if wide else 64
    split = splits > 1
    parts = stats = out
    if split:
        rows = sequences * short * heads * splits
        parts = torch.empty(rows, size, dtype=torch.float32, device=q_THC.device)
        stats = torch.empty(rows, 2, dtype=torch.float32, device=q_THC.device)
    tile = block_m // group
    blocks = sequences * -(-short // tile) if short else tokens // tile + sequences
    counted = max(sequences, ALIKE_SEQUENCES if alike else 1)
    launch(
        attend_kernel,
        (blocks, groups, splits),
        q_THC, cache.k_PSGC, cache.v_PSGC, step.block_table_BP, step.query_ends_B,
        step.kv_lengths_B, out, parts, stats, sequences, heads, q_THC.stride(0), q_THC.stride(1),
        slots * groups * size, groups * size, size, step.block_table_BP.stride(0),
        scale * cache.k_scale * LOG2_E, cache.v_scale,
        1 if short or alike else SHORT + 1, SHORT if short else tokens,
        GROUP=group, S=slots, C=size, SPLITS=splits if split else 0, QUERIES=short,
        LEAST_SPLIT=LEAST_SPLIT, MOST_SPLITS=MOST_SPLITS,
        BLOCK_B=1 if short else triton.next_power_of_2(counted), BLOCK_M=block_m, BLOCK_N=block_n,
        ALIKE=alike, options=_options(target, block_m),
    )  # fmt: skip
    if split:
        block = min(16, triton.next_power_of_2(heads))
        launch(
            merge_kernel,
            (sequences, short, triton.cdiv(heads, block)),
            parts, stats, step.query_ends_B, step.kv_lengths_B, out, heads, cache.v_scale, SHORT,
            C=size, SPLITS=splits, QUERIES=short, LEAST_SPLIT=LEAST_SPLIT,
            MOST_SPLITS=MOST_SPLITS, BLOCK_H=block, options={"num_warps": 4},
        )  # fmt: skip


def _block_m(group: int, short: int, most: int) -> int:
    """Rows of a tile: the queries of a short sequence at once, or as many as registers allow."""
    wanted = group * short if short else most
    return max(16, _power_of_2(group), min(most, _power_of_2(wanted)))


def _power_of_2(number: int) -> int:
    """The least power of two that is not below it."""
    return 1 << (number - 1).bit_length()


def _options(target: Target, block_m: int) -> dict[str, int]:
    options = {"num_warps": 4 if block_m <= 64 else 8, "num_stages": 1 if target.is_amd else 2}
    if target.is_amd:
        options["matrix_instr_nonkdim"] = 16
    return options
