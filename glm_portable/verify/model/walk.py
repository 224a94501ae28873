"""A model's way through given sequences, in whatever steps: what each token left behind.

A path says which tokens of which sequences each step computes, and in which pages. Whatever the
path, the results belong to tokens and can be compared: a prefill's with a decode's.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor

from glm_portable.model import Trace
from glm_portable.ops import KVCache, Step
from glm_portable.verify.golden.fingerprint import project, rms
from glm_portable.verify.model.layers import SLOTS, Runner
from glm_portable.verify.watch import Routing

Ids = Sequence[Sequence[int]]


@dataclass(frozen=True)
class Piece:
    """Tokens `begin` to `end` of a sequence, whose pages are these."""

    sequence: int
    begin: int
    end: int
    pages: Sequence[int]


Path = Sequence[Sequence[Piece]]


@dataclass
class Walked:
    """Rows of all sequences' tokens, one sequence behind the other, on the host.

    A sequence's last token is only what follows the one before, so it has no row. streams: per
    layer the projected residual stream as it enters, and last as it leaves the last one. mtp_TD:
    hidden states of the MTP layer. routings: of each router, the MTP layer's last. rows: which
    were computed.
    """

    hidden_TD: Tensor
    mtp_TD: Tensor | None
    rows: Tensor
    streams: list[Tensor] = field(default_factory=list)
    rms: list[Tensor] = field(default_factory=list)
    routings: list[Routing] = field(default_factory=list)
    caches: list[KVCache] = field(default_factory=list)


def offsets(sequences: Ids) -> list[int]:
    """Where each sequence's rows begin, and last how many there are."""
    found = [0]
    for ids in sequences:
        found.append(found[-1] + len(ids) - 1)
    return found


def pages_of(sequences: Ids, spare: int = 0) -> list[list[int]]:
    """Pages for each sequence, in falling order and interleaved; page 0 is nobody's.

    spare: pages that the next sequences begin behind, for other owners.
    """
    counts = [-(-(len(ids) - 1) // SLOTS) for ids in sequences]
    free = list(range(sum(counts) + spare, spare, -1))
    tables: list[list[int]] = [[] for _ in sequences]
    while free:
        for table, count in zip(tables, counts, strict=True):
            if len(table) < count:
                table.append(free.pop(0))
    return tables


def prefill(sequences: Ids, decode: int = 0) -> Path:
    """All sequences at once: one step, but for their last `decode` tokens, which take one each."""
    tables, lengths = pages_of(sequences), [len(ids) - 1 for ids in sequences]
    path = [[Piece(s, 0, n - decode, tables[s]) for s, n in enumerate(lengths)]]
    for d in range(decode, 0, -1):
        path.append([Piece(s, n - d, n - d + 1, tables[s]) for s, n in enumerate(lengths)])
    return path


def walk(
    runner: Runner,
    sequences: Ids,
    path: Path,
    experts: Sequence[Tensor] | None = None,
    counted: bool = True,
) -> Walked:
    """Go that way. experts: what every router must choose for each row, (T, K) a router.

    counted: whether what runs is; on the host, where it says little, it takes half the time.
    """
    starts = offsets(sequences)
    model, watched = runner.model, runner.watched
    width, count = model.config.hidden_size, starts[-1]
    page_count = 1 + max(max(piece.pages) for step in path for piece in step)
    caches = model.allocate(page_count, SLOTS)
    hidden = torch.zeros(count, width, dtype=model.dtype)
    drafted = None if model.mtp is None else torch.zeros_like(hidden)
    found = Walked(hidden, drafted, torch.zeros(count, dtype=torch.bool), caches=caches)
    counting = runner.watching() if counted or watched.on_device else nullcontext()
    with torch.inference_mode(), counting:
        for pieces in path:
            rows = torch.cat([torch.arange(p.begin, p.end) + starts[p.sequence] for p in pieces])
            watched.routings.clear()
            watched.replayed = [e[rows] for e in experts or ()]
            _step(runner, sequences, pieces, rows, found)
            _keep_routings(watched.routings, rows, count, found)
            found.rows[rows] = True
    watched.routings.clear()
    watched.replayed = []
    return found


def _step(
    runner: Runner, sequences: Ids, pieces: Sequence[Piece], rows: Tensor, found: Walked
) -> None:
    model = runner.model
    device = model.ops.device
    layout = [(p.begin, p.end - p.begin, p.pages) for p in pieces]
    step = Step.build(layout, SLOTS, device)

    def tokens(shift: int) -> Tensor:
        ids = [i for p in pieces for i in sequences[p.sequence][p.begin + shift : p.end + shift]]
        return torch.tensor(ids, device=device)

    trace = Trace()
    hidden = model.forward(tokens(0), step, found.caches, trace)
    found.hidden_TD[rows] = hidden.cpu()
    assert trace.last is not None
    for i, stream in enumerate([*trace.residuals, trace.last]):
        _keep(found.streams, i, project(stream, i), rows, len(found.rows))
        _keep(found.rms, i, rms(stream), rows, len(found.rows))
    if model.mtp is not None:
        assert found.mtp_TD is not None
        drafted = model.mtp(tokens(1), hidden, step, found.caches[-1])
        found.mtp_TD[rows] = drafted.cpu()


def _keep(kept: list[Tensor], i: int, values: Tensor, rows: Tensor, count: int) -> None:
    if i == len(kept):
        kept.append(values.new_zeros(count, *values.shape[1:]))
    kept[i][rows] = values


def _keep_routings(routings: Sequence[Routing], rows: Tensor, count: int, found: Walked) -> None:
    for i, routing in enumerate(routings):
        if i == len(found.routings):
            x, experts = routing.x_TD, routing.experts_TK
            empty = Routing(
                x.new_zeros(count, x.shape[1]), experts.new_zeros(count, experts.shape[1])
            )
            found.routings.append(empty)
        found.routings[i].x_TD[rows] = routing.x_TD
        found.routings[i].experts_TK[rows] = routing.experts_TK


def cached(walked: Walked, layer: int, sequences: Ids, path: Path) -> tuple[Tensor, Tensor]:
    """Projected keys and values of every row of a layer, (T, WIDTH) each, as the path left them."""
    tables = {piece.sequence: piece.pages for step in path for piece in step}
    cache = walked.caches[layer]
    sides = ((cache.k_PSGC, cache.k_scale), (cache.v_PSGC, cache.v_scale))
    found = []
    for side, (pages, scale) in enumerate(sides):
        host = pages.cpu()
        rows = [
            host[list(tables[s])].flatten(0, 1)[: len(ids) - 1].flatten(1).double() * scale
            for s, ids in enumerate(sequences)
        ]
        found.append(project(torch.cat(rows), 1000 + side))
    return found[0], found[1]
