"""The rule of `metrics` for one call: which of its results are judged, and over which rows.

Rows are judged together, and those of each sequence by themselves: a fault in one of them would
drown in the others. Of the pages, the slots that were to be written are judged, and all others must
be as they were. A router is judged by its choices, and by its weights where it took the exact ones.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from glm_portable.backends import reference
from glm_portable.verify.call import Call, Tensors, perform
from glm_portable.verify.metrics import (
    FLOOR,
    WORST_PLAIN,
    Distance,
    K,
    distance,
    faults,
    flips,
    router_error,
)

PAGES = ("k_pages", "v_pages")
SAME = Distance(0.0, 1.0, 0.0, True)


@dataclass(frozen=True)
class Judged:
    """findings: what is wrong, one sentence each. worst, plain: distances of the rows that are
    furthest beyond what plain PyTorch allows, or nearest to it."""

    findings: tuple[str, ...]
    worst: Distance
    plain: Distance
    explained: int = 0
    unexplained: int = 0

    @property
    def allowed(self) -> float:
        return K * self.plain.error + FLOOR

    @property
    def excess(self) -> float:
        """The error, in units of what is allowed."""
        return self.worst.error / self.allowed

    def measures(self) -> dict[str, float]:
        """By the names that reports use."""
        return {
            "error": self.worst.error,
            "allowed": self.allowed,
            "slope": self.worst.slope,
            "tail": self.worst.tail,
            "flips_explained": self.explained,
            "flips_unexplained": self.unexplained,
        }


@dataclass(frozen=True)
class Yardsticks:
    """Results of plain PyTorch in the call's type, and of float64."""

    plain: Tensors
    exact: Tensors

    @classmethod
    def of(cls, call: Call, dtype: torch.dtype) -> "Yardsticks":
        with torch.inference_mode():
            return cls(perform(call, reference, dtype), perform(call, reference, torch.float64))


def judge(call: Call, ours: Tensors, sticks: Yardsticks, query_ends: Sequence[int]) -> Judged:
    """query_ends: where each sequence's rows end."""
    for name, exact in sticks.exact.items():
        if name not in ours or ours[name].shape != exact.shape:
            shape = tuple(ours[name].shape) if name in ours else "missing"
            finding = f"{name}: the shape is {shape}, not {tuple(exact.shape)}"
            return Judged((finding,), Distance(float("inf"), 0.0, float("inf"), False), SAME)
    if call.op == "route":
        return _judge_route(call, ours, sticks)
    groups = by_sequence(query_ends)
    names = [name for name in sticks.exact if name not in PAGES]
    judged = [judge_rows(n, ours[n], sticks.plain[n], sticks.exact[n], groups) for n in names]
    strays: list[str] = []
    if call.op == "rope_store":
        slots = call.tensors["slots"].long()
        for name in PAGES:
            rows = [_slots(t[name])[slots] for t in (ours, sticks.plain, sticks.exact)]
            judged.append(judge_rows(name, rows[0], rows[1], rows[2], groups))
            if count := _strays(call.tensors[name], ours[name], slots):
                strays.append(f"{name}: {count} slots were changed that belong to other tokens")
    return worst_of(judged, strays)


Groups = Sequence[tuple[str, slice | list[int]]]
"""Rows that are judged together, all of them first, with words for them."""


def judge_rows(name: str, ours: Tensor, plain: Tensor, exact: Tensor, groups: Groups) -> Judged:
    """One result, (T, ...), in each group of rows by itself."""
    seen = []
    for words, rows in groups:
        a, p, e = ours[rows], plain[rows], exact[rows]
        off = distance(a, e), distance(p, e)
        if not off[1].error <= WORST_PLAIN and off[1].finite:
            continue  # numbers that cancel: plain PyTorch is no yardstick for these
        wrong = [f"{name}{words}: {fault}" for fault in faults(a, p, e)]
        seen.append(Judged(tuple(wrong), *off))
    return worst_of(seen)


def worst_of(judged: Sequence[Judged], more: Sequence[str] = ()) -> Judged:
    """All findings, and the distances that are furthest beyond the rule."""
    if not judged:
        return Judged(tuple(more), SAME, SAME)
    worst = max(judged, key=lambda j: (bool(j.findings), j.excess))
    found = (finding for j in judged for finding in j.findings)
    explained, unexplained = sum(j.explained for j in judged), sum(j.unexplained for j in judged)
    return Judged((*found, *more), worst.worst, worst.plain, explained, unexplained)


def by_sequence(query_ends: Sequence[int]) -> Groups:
    """All rows, and those of each sequence."""
    begins = (0, *query_ends[:-1])
    groups: list[tuple[str, slice | list[int]]] = [("", slice(None))]
    if len(query_ends) > 1:
        for b, (begin, end) in enumerate(zip(begins, query_ends, strict=True)):
            groups.append((f" of sequence {b + 1}", slice(begin, end)))
    return groups


def _judge_route(call: Call, ours: Tensors, sticks: Yardsticks) -> Judged:
    t, count = call.tensors, len(call.tensors["bias"])
    x, gate = t["x"], t["gate"]
    choice = F.linear(x.double(), gate.double()).sigmoid() + t["bias"].double()
    explained, unexplained = flips(ours["experts"], choice, router_error(x, gate, choice))
    results = (ours, sticks.plain, sticks.exact)
    dense = [_dense(r["weights"], r["experts"], count) for r in results]
    sets = [_dense(torch.ones_like(r["weights"]), r["experts"], count) for r in results]
    same = (sets[0] == sets[2]).all(-1) & (sets[1] == sets[2]).all(-1)
    rows = [d[same] for d in dense]
    wrong = [f"weights: {fault}" for fault in faults(rows[0], rows[1], rows[2])]
    if unexplained:
        wrong.append(
            f"experts: {unexplained} choices of {ours['experts'].numel()} are others than the "
            "exact ones, and further from them than rounding explains"
        )
    distances = distance(rows[0], rows[2]), distance(rows[1], rows[2])
    return Judged(tuple(wrong), *distances, explained, unexplained)


def _dense(weights_TK: Tensor, experts_TK: Tensor, count: int) -> Tensor:
    """Every expert's weight, (T, E); experts that do not exist are left out."""
    valid = (experts_TK >= 0) & (experts_TK < count)
    dense = torch.zeros(len(weights_TK), count + 1, dtype=torch.float64)
    dense.scatter_(1, experts_TK.long().where(valid, count), weights_TK.double())
    return dense[:, :count]


def _slots(pages_PSGC: Tensor) -> Tensor:
    return pages_PSGC.flatten(0, 1)


def _strays(before: Tensor, after: Tensor, slots_T: Tensor) -> int:
    """How many slots were changed that were not to be written."""
    other = torch.ones(before.shape[0] * before.shape[1], dtype=torch.bool)
    other[slots_T] = False
    old, new = _slots(before)[other].flatten(1), _slots(after)[other].to(before.dtype).flatten(1)
    changed = (old.view(torch.uint8) != new.view(torch.uint8)).any(-1)
    return int(changed.sum())
