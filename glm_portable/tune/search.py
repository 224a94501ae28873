"""Find the fastest right tile of each job: check, time all roughly, time the best again."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from glm_portable.kernels.target import Target
from glm_portable.kernels.tiles import Tile
from glm_portable.kernels.tuned_lines import Line
from glm_portable.tune.candidates import candidates
from glm_portable.tune.clock import Clock
from glm_portable.tune.shapes import Job

ROUGH, FINE = 5, 31
FINALISTS = 6
GAIN = 1.02
"""By so much a tile must beat the rule's: less is within what medians of two runs differ by."""


class Work(Protocol):
    """See `problem.Problem`."""

    def prepare(self, tile: Tile) -> Callable[[], Tensor]: ...

    def check(self, result: Tensor) -> list[str]: ...


@dataclass(frozen=True)
class Outcome:
    """best_us, rule_us: medians of one run. wrong: candidates whose result was out of the rule;
    refused: those that did not compile or start, with why. skipped: an older line stands."""

    job: Job
    best: Tile
    best_us: float = 0.0
    rule_us: float = 0.0
    measured: int = 0
    wrong: tuple[str, ...] = ()
    refused: tuple[str, ...] = ()
    skipped: bool = False


@dataclass(frozen=True)
class Search:
    """work: makes the inputs of a job. known: lines to keep where they are there already."""

    target: Target
    work: Callable[[Job], Work]
    clock: Clock
    known: dict[tuple[int, int, int, str, int], Line]

    def run(
        self, pairs: Iterable[tuple[Job, Job]], time_is_up: Callable[[], bool]
    ) -> Iterator[Outcome]:
        """Outcomes in order, each as soon as it is there; none is begun once time is up."""
        for gate_up, down in pairs:
            block_m = None
            for job in (gate_up, down):
                if time_is_up():
                    return
                outcome = self.job(job, block_m)
                if outcome is None:
                    break  # no candidate was right: then there is nothing for `down` to follow
                block_m = outcome.best.block_m
                yield outcome

    def job(self, job: Job, block_m: int | None) -> Outcome | None:
        """The fastest right tile; None if no candidate is right. block_m: what it must have."""
        line = self.known.get(job.key)
        if line is not None and block_m in (None, line.tile["block_m"]):
            return Outcome(job, Tile(**line.tile), skipped=True)
        work = self.work(job)
        right, wrong, refused = self._right(work, candidates(job, self.target, block_m))
        if not right:
            return None
        rough = self.clock([call for _, call in right], ROUGH)
        order = sorted(range(len(right)), key=lambda i: rough[i])
        # The rule's tile comes first; it stays in, to be compared with in the same run.
        finalists = sorted({0, *order[:FINALISTS]})
        fine = self.clock([right[i][1] for i in finalists], FINE)
        best_us = min(fine)
        best = finalists[fine.index(best_us)]
        if best_us * GAIN > fine[0]:
            best, best_us = 0, fine[0]
        return Outcome(job, right[best][0], best_us, fine[0], len(right), wrong, refused)

    def _right(
        self, work: Work, tiles: Sequence[Tile]
    ) -> tuple[list[tuple[Tile, Callable[[], Tensor]]], tuple[str, ...], tuple[str, ...]]:
        """Calls of the tiles that give right results: a wrong one must not even be timed."""
        right, wrong, refused = [], [], []
        for tile in tiles:
            try:
                call = work.prepare(tile)
                result = call()
            except Exception as error:  # whatever compiler or driver raise, the tile is out
                refused.append(f"{tile}: {type(error).__name__}: {error}")
                continue
            if found := work.check(result):
                wrong.append(f"{tile}: {found[0]}")
            else:
                right.append((tile, call))
        return right, tuple(wrong), tuple(refused)


def line(outcome: Outcome, source: dict[str, Any]) -> Line:
    """What goes into the table. source: device, versions and date."""
    tile = {
        "block_m": outcome.best.block_m,
        "block_n": outcome.best.block_n,
        "block_k": outcome.best.block_k,
        "group_m": outcome.best.group_m,
        "options": outcome.best.options,
    }
    times = {"median_us": round(outcome.best_us, 2), "rule_us": round(outcome.rule_us, 2)}
    return Line(*outcome.job.key, tile, source | times)
