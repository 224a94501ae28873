"""Faults of writing keys and values to pages, and of the step that says where they are."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from glm_portable.ops import Step
from glm_portable.verify.faults.fault import BOTH, OPS, Body, Fault, Level, Op


def stepped(change: Callable[[Step, int], Step], at: int, honest: Op, *arguments: Any) -> Any:
    """The op with another step; `at` is where it stands among the arguments, after the cache."""
    before, step, after = arguments[:at], arguments[at], arguments[at + 1 :]
    size = before[-1].k_PSGC.shape[1]
    return honest(*before, change(step, size), *after)


def storing(change: Callable[[Step, int], Step]) -> Body:
    return partial(stepped, change, 6)


def attending(change: Callable[[Step, int], Step]) -> Body:
    return partial(stepped, change, 2)


def slots_exchanged(step: Step, size: int) -> Step:
    """Neighbouring slots change places."""
    return replace(step, slots_T=step.slots_T ^ 1)


def first_page_only(step: Step, size: int) -> Step:
    """The block table is read at 0: every page of a sequence is its first."""
    owners = owner(step)
    first = step.block_table_BP[owners, 0].long()
    return replace(step, slots_T=first * size + step.slots_T % size)


def rewritten(keep: Callable[[Step, int], Tensor], honest: Op, *arguments: Any) -> Any:
    """After storing, some slots hold again what they held before."""
    cache, step = arguments[5], arguments[6]
    slots = step.slots_T[keep(step, cache.k_PSGC.shape[1])]
    old = [(pages, rows(pages)[slots].clone()) for pages in (cache.k_PSGC, cache.v_PSGC)]
    result = honest(*arguments)
    for pages, values in old:
        rows(pages)[slots] = values
    return result


def rows(pages_PSGC: Tensor) -> Tensor:
    """Pages as one row of slots, in bytes where torch cannot index the type."""
    flat = pages_PSGC.flatten(0, 1)
    return flat.view(torch.uint8) if flat.dtype.itemsize == 1 else flat


def last_slots(step: Step, size: int) -> Tensor:
    return step.slots_T % size == size - 1


def newest_tokens(step: Step, size: int) -> Tensor:
    """The last token of every sequence."""
    ends = step.query_ends_B.long() - 1
    found = torch.zeros_like(step.slots_T, dtype=torch.bool)
    found[ends] = True
    return found


def last_pages(step: Step, size: int) -> Tensor:
    """Tokens on the page that a sequence has just begun."""
    owners = owner(step)
    last = (step.kv_lengths_B.long() - 1) // size
    pages = step.block_table_BP[torch.arange(len(last), device=last.device), last]
    return step.slots_T // size == pages[owners]


def owner(step: Step) -> Tensor:
    """(T,) the sequence of each token."""
    counts = step.query_ends_B.long().diff(prepend=step.query_ends_B.new_zeros(1).long())
    return torch.repeat_interleave(torch.arange(len(counts), device=counts.device), counts)


def values_are_keys(honest: Op, *arguments: Any) -> Any:
    """The values' pages get the keys."""
    result, cache, step = honest(*arguments), arguments[5], arguments[6]
    rows(cache.v_PSGC)[step.slots_T] = rows(cache.k_PSGC)[step.slots_T]
    return result


def keys_are_values(honest: Op, *arguments: Any) -> Any:
    result, cache, step = honest(*arguments), arguments[5], arguments[6]
    rows(cache.k_PSGC)[step.slots_T] = rows(cache.v_PSGC)[step.slots_T]
    return result


def unit_ignored(honest: Op, *arguments: Any) -> Any:
    """What FP8 pages hold is not divided by their scale."""
    cache = replace(arguments[5], k_scale=1.0, v_scale=1.0)
    return honest(*arguments[:5], cache, *arguments[6:])


def not_saturated(honest: Op, *arguments: Any) -> Any:
    """What is too large for FP8 becomes NaN, as a plain conversion makes it."""
    result, v, cache, step = honest(*arguments), arguments[2], arguments[5], arguments[6]
    pages = cache.v_PSGC
    if pages.dtype.itemsize == 1:
        top = torch.finfo(pages.dtype).max
        large = (v.float() / cache.v_scale).abs() > top * 1.0625
        nan = torch.full_like(large, 0x80 if top == 240 else 0x7F, dtype=torch.uint8)
        rows(pages)[step.slots_T] = torch.where(large, nan, rows(pages)[step.slots_T])
    return result


def tiny_negatives_are_nan(honest: Op, *arguments: Any) -> Any:
    """Negative values that round to nothing become 0x80, which is NaN in FNUZ."""
    result, v, cache, step = honest(*arguments), arguments[2], arguments[5], arguments[6]
    pages = cache.v_PSGC
    if pages.dtype == torch.float8_e4m3fnuz:
        new = rows(pages)[step.slots_T]
        rows(pages)[step.slots_T] = torch.where((new == 0) & (v < 0), 0x80, new)
    return result


def _swapped(step: Step, size: int, a: int, b: int) -> Step:
    table = step.block_table_BP.clone()
    if table.shape[1] > max(a, b):
        table[:, [a, b]] = table[:, [b, a]]
    return replace(step, block_table_BP=table)


def pages_swapped(step: Step, size: int) -> Step:
    """The first two pages change places, where both are full."""
    swapped = _swapped(step, size, 0, 1).block_table_BP
    full = (step.kv_lengths_B >= 2 * size).unsqueeze(1)
    return replace(step, block_table_BP=torch.where(full, swapped, step.block_table_BP))


def page_stale(step: Step, size: int) -> Step:
    """The second page is still the first."""
    table = step.block_table_BP.clone()
    table[:, 1:2] = table[:, :1]
    return replace(step, block_table_BP=table)


def table_of_neighbour(step: Step, size: int) -> Step:
    """Sequences read each other's pages."""
    return replace(step, block_table_BP=step.block_table_BP.roll(1, 0))


def pages_in_order(step: Step, size: int) -> Step:
    """The pages behind a sequence's first are taken to follow it in memory."""
    width = step.block_table_BP.shape[1]
    following = torch.arange(width, device=step.block_table_BP.device, dtype=torch.int32)
    return replace(step, block_table_BP=following.expand_as(step.block_table_BP).contiguous())


def _lengths(step: Step, change: Callable[[int, int], int]) -> Step:
    """Other numbers of keys, but never fewer than the sequence's queries in this step."""
    begins = (0, *step.query_ends[:-1])
    counts = [end - begin for begin, end in zip(begins, step.query_ends, strict=True)]
    lengths = tuple(max(n, change(kv, n)) for kv, n in zip(step.kv_lengths, counts, strict=True))
    return replace(step, kv_lengths=lengths, kv_lengths_B=step.kv_lengths_B.new_tensor(lengths))


def tail_ignored(step: Step, size: int) -> Step:
    """Only whole pages are read."""
    return _lengths(step, lambda kv, n: kv // size * size)


def one_key_too_many(step: Step, size: int) -> Step:
    """One slot more is read, where the last page has one."""
    return _lengths(step, lambda kv, n: kv + (kv % size != 0))


def whole_pages(step: Step, size: int) -> Step:
    """The last page is read to its end, with what others left there."""
    return _lengths(step, lambda kv, n: -(-kv // size) * size)


def _fault(
    name: str,
    op: str,
    body: Body,
    stands_for: str,
    levels: frozenset[Level] = BOTH,
    why: str = "",
) -> Fault:
    return Fault(name, op, stands_for, levels, why, {op: body})


BF16_PAGES = "the pocket model's pages are BF16"
ONE_SEQUENCE = "one sequence is compared"

PAGES = [
    _fault("store-slots-exchanged", "rope_store", storing(slots_exchanged), "slot index"),
    _fault("store-first-page-only", "rope_store", storing(first_page_only),
           "block table read at 0"),
    _fault("store-last-slot-missed", "rope_store", partial(rewritten, last_slots),
           "loop up to the page's last slot but one"),
    _fault("store-newest-missed", "rope_store", partial(rewritten, newest_tokens),
           "T - 1 tokens written"),
    _fault("store-page-stale", "rope_store", partial(rewritten, last_pages),
           "a page reused before it was written (vllm-ascend#14306)"),
    _fault("store-keys-as-values", "rope_store", values_are_keys, "one pointer for both"),
    _fault("store-values-as-keys", "rope_store", keys_are_values, "one pointer for both"),
    _fault("store-scale-ignored", "rope_store", unit_ignored,
           "scale not given to the writing kernel (vllm PR#34863)", OPS, BF16_PAGES),
    _fault("store-not-saturated", "rope_store", not_saturated, "NaN beyond 448", OPS, BF16_PAGES),
    _fault("store-tiny-negatives-are-nan", "rope_store", tiny_negatives_are_nan,
           "-0 stored as 0x80 in FNUZ pages", OPS, BF16_PAGES),
    _fault("attend-pages-swapped", "attend", attending(pages_swapped), "pages in another order"),
    _fault("attend-page-stale", "attend", attending(page_stale), "table not updated"),
    _fault("attend-table-of-neighbour", "attend", attending(table_of_neighbour),
           "row of the table (ATOM PR#273)", OPS, ONE_SEQUENCE),
    _fault("attend-pages-in-order", "attend", attending(pages_in_order),
           "pages taken for contiguous"),
    _fault("attend-tail-ignored", "attend", attending(tail_ignored), "keys of a part page"),
    _fault("attend-one-key-too-many", "attend", attending(one_key_too_many),
           "length + 1"),
    _fault("attend-whole-pages", "attend", attending(whole_pages),
           "no mask on the last page"),
]  # fmt: skip
