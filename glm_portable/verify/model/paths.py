"""The same tokens on other ways through the same backend: they must say the same.

Prefill in one step, decoding one at a time, chunks, a prefix that another sequence has cached, and
a sequence that was preempted and computed again. The backend is held against itself, and may differ
by what plain PyTorch is off at most; bit equality is reported.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from glm_portable.engine.kv_cache import PagePool
from glm_portable.engine.scheduler import Scheduler
from glm_portable.engine.scheduler import Sequence as Scheduled
from glm_portable.verify.golden.fingerprint import project
from glm_portable.verify.golden.record import HIDDEN, Golden
from glm_portable.verify.metrics import distance, judge
from glm_portable.verify.model.against import check, forced, numbers
from glm_portable.verify.model.layers import SLOTS, WHOLE_SLOPE, Runner
from glm_portable.verify.model.walk import Ids, Path, Piece, Walked, pages_of
from glm_portable.verify.results import Check

CHUNK = 7
"""Tokens of a chunk: no divisor of a page, so chunks end inside of pages and at their ends."""


def paths(sequences: Ids) -> dict[str, Path]:
    """Ways that must lead to the same, by name."""
    found: dict[str, Path] = {
        "decode": decode(sequences),
        "chunked prefill": chunked(sequences),
        "prefix-cached": prefix_cached(sequences),
    }
    found["preempted"] = preempted(sequences)[0]
    return found


def decode(sequences: Ids) -> Path:
    """The first half of each in one step, then one token each, all sequences in a batch."""
    tables, counts = pages_of(sequences), [len(ids) - 1 for ids in sequences]
    halves = [max(1, count // 2) for count in counts]
    path = [[Piece(s, 0, half, tables[s]) for s, half in enumerate(halves)]]
    for d in range(max(n - half for n, half in zip(counts, halves, strict=True))):
        at = [(s, half + d) for s, half in enumerate(halves) if half + d < counts[s]]
        path.append([Piece(s, i, i + 1, tables[s]) for s, i in at])
    return path


def chunked(sequences: Ids) -> Path:
    """Chunk by chunk, the sequences side by side."""
    tables, counts = pages_of(sequences), [len(ids) - 1 for ids in sequences]
    return [
        [
            Piece(s, begin, min(begin + CHUNK, count), tables[s])
            for s, count in enumerate(counts)
            if begin < count
        ]
        for begin in range(0, max(counts), CHUNK)
    ]


def prefix_cached(sequences: Ids) -> Path:
    """Each sequence once, and again in pages of its own behind the full ones of the first time."""
    tables, counts = pages_of(sequences), [len(ids) - 1 for ids in sequences]
    fresh = max(page for table in tables for page in table) + 1
    again = []
    for s, count in enumerate(counts):
        shared = (count - 1) // SLOTS
        own = list(range(fresh, fresh + len(tables[s]) - shared))
        fresh += len(own)
        again.append(Piece(s, shared * SLOTS, count, [*tables[s][:shared], *own]))
    return [[Piece(s, 0, count, tables[s]) for s, count in enumerate(counts)], again]


def preempted(sequences: Ids) -> tuple[Path, int]:
    """As the engine's scheduler does it with too few pages for all; and how often it preempted."""
    counts = [len(ids) - 1 for ids in sequences]
    need = [-(-count // SLOTS) for count in counts]
    pool = PagePool(max(max(need), sum(need) - 1), SLOTS)
    scheduler = Scheduler(pool, len(sequences), max_num_batched_tokens=2 * SLOTS + 1)
    owners = [
        Scheduled(str(s), list(ids[: max(1, count // 3)]), len(ids))
        for s, (ids, count) in enumerate(zip(sequences, counts, strict=True))
    ]
    for owner in owners:
        scheduler.submit(owner)
    path = []
    while chunks := scheduler.schedule():
        step = []
        for chunk in chunks:
            owner = chunk.sequence
            begin = owner.num_computed
            pages = [page + 1 for page in owner.block_table]  # page 0 is nobody's
            step.append(Piece(int(owner.request_id), begin, begin + chunk.count, pages))
        path.append(step)
        sampling = [chunk.sequence for chunk in chunks if chunk.samples]
        scheduler.complete(chunks)
        for owner in sampling:
            s = int(owner.request_id)
            if len(owner.token_ids) == counts[s]:
                scheduler.remove(owner)
            else:
                owner.token_ids.append(sequences[s][len(owner.token_ids)])
    return path, scheduler.preemptions


def consistent(runner: Runner, golden: Golden, whole: Walked) -> Iterator[Check]:
    """Every path against the prefill in one step."""
    for name, path in paths(golden.prompts).items():
        yield _same(golden, forced(runner, golden, path, counted=False), whole, name)


def _same(golden: Golden, ours: Walked, whole: Walked, name: str) -> Check:
    found: list[str] = []
    measures: dict[str, float] = {}
    sides = [("hidden", ours.hidden_TD, whole.hidden_TD)]
    if ours.mtp_TD is not None and whole.mtp_TD is not None and "mtp.hidden" in golden.tensors:
        sides.append(("mtp.hidden", ours.mtp_TD, whole.mtp_TD))
    equal = torch.ones(len(ours.rows), dtype=torch.bool)
    for part, a, b in sides:
        off = distance(project(a, HIDDEN), project(b, HIDDEN))
        plain = golden.plain[part]
        what = "hidden states" if part == "hidden" else "MTP layer's hidden states"
        found += [f"{what} are not those of a prefill: {f}" for f in judge(off, plain, WHOLE_SLOPE)]
        measures = measures or numbers(off, plain)
        equal &= _equal_rows(a, b)
    measures["bit_equal"] = equal.double().mean().item()
    off_T = project(ours.hidden_TD, HIDDEN) - project(whole.hidden_TD, HIDDEN)
    series = {"difference": off_T.square().mean(-1).sqrt().tolist()}
    return check(name, "equals prefill", found, measures, series)


def _equal_rows(a_TD: Tensor, b_TD: Tensor) -> Tensor:
    width = a_TD.shape[1] * a_TD.element_size()
    a, b = (x.contiguous().view(torch.uint8).view(len(x), width) for x in (a_TD, b_TD))
    return (a == b).all(-1)
