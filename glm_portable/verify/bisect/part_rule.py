"""The rule of `metrics` for a part of a model: over all tokens, and over those of each step."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from glm_portable.verify.bisect.scenario import Scenario
from glm_portable.verify.metrics import FLOOR, Distance, K, distance, faults

FREE_SLOPE = 0.01
"""Of a model left to itself: what its layers add is correlated, so its slope scatters more."""
FEW = 8
"""Steps of fewer tokens are judged together: a number that is rounded to the next code may double
the error of a single token."""
Groups = Sequence[tuple[str, list[int]]]
"""Rows that are judged together, with words for them."""


@dataclass(frozen=True)
class Judged:
    """findings: what is wrong, one sentence each. worst, plain: distances of the rows that are
    furthest beyond what plain PyTorch allows, or nearest to it. explained, unexplained: tokens of a
    router that went to other experts."""

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
            "flips_explained": self.explained,
            "flips_unexplained": self.unexplained,
        }


def judge_part(ours: Tensor, plain: Tensor, exact: Tensor, steps: Groups) -> Judged:
    """What a part adds to the stream: all rows by the whole rule, those of a step by the error.

    The errors of a token are correlated, so of a few tokens neither slope nor tail is a measure.
    """
    off = distance(ours, exact), distance(plain, exact)
    every = Judged(tuple(f"result: {fault}" for fault in faults(ours, plain, exact)), *off)
    return _worst_of([every, *(_by_error(w, ours[r], plain[r], exact[r]) for w, r in steps)])


def judge_free(ours: Tensor, plain: Tensor, exact: Tensor, steps: Groups) -> Judged:
    """Of models left to themselves single numbers are no measure: the error and the slope are."""
    every = _by_error("", ours, plain, exact)
    drift = FREE_SLOPE + K * abs(every.plain.slope - 1)
    if not abs(every.worst.slope - 1) <= drift:
        text = f"result: slope {every.worst.slope:.5f} is further than {drift:.3g} from 1"
        every = replace(every, findings=(*every.findings, text))
    return _worst_of([every, *(_by_error(w, ours[r], plain[r], exact[r]) for w, r in steps)])


def by_step(scenario: Scenario) -> Groups:
    """Rows of each step, and of all the steps of few tokens together."""
    begin, groups, few = 0, [], []
    for s, name in enumerate(scenario.names):
        rows = list(range(begin, begin + sum(n for _, _, n in scenario.steps[s])))
        if len(rows) < FEW:
            few += rows
        else:
            groups.append((f" in {name}", rows))
        begin += len(rows)
    return [*groups, (" in steps of few tokens", few)] if few else groups


def _by_error(words: str, ours: Tensor, plain: Tensor, exact: Tensor) -> Judged:
    off, allowed = distance(ours, exact), distance(plain, exact)
    judged = Judged((), off, allowed)
    if off.finite and off.error <= judged.allowed:
        return judged
    text = f"error {off.error:.3g} exceeds {judged.allowed:.3g} ({K:g} times plain PyTorch's)"
    return replace(judged, findings=(f"result{words}: {text}",))


def _worst_of(judged: Sequence[Judged]) -> Judged:
    """All findings, and the distances that are furthest beyond the rule."""
    worst = max(judged, key=lambda j: (bool(j.findings), j.excess))
    return replace(worst, findings=tuple(finding for j in judged for finding in j.findings))
