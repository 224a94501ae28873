"""How far apart two next-token distributions are of which only the likeliest tokens are known."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

QUANTILES = (0.5, 0.75, 0.9)
_LEAST = 1e-9
"""Stands for no probability at all, of which the logarithm would be infinite."""


def divergence(exact: Mapping[str, float], other: Mapping[str, float]) -> float:
    """KL(exact || other) in nats, of log probabilities by token.

    Tokens that both know are compared one by one, all the others as one. Lumping them together
    can only make the divergence smaller (the data processing inequality), so what is found is
    there.
    """
    shared = exact.keys() & other.keys()
    total = sum(math.exp(exact[token]) * (exact[token] - other[token]) for token in shared)
    rest, other_rest = (
        max(1 - sum(math.exp(side[token]) for token in shared), _LEAST) for side in (exact, other)
    )
    return max(total + rest * math.log(rest / other_rest), 0.0)


def likeliest(tokens: Mapping[str, float]) -> str:
    return max(tokens, key=lambda token: tokens[token])


@dataclass(frozen=True)
class Spread:
    """Many divergences.

    Most of what rounding does to a distribution is done at a few positions, where it sends a token
    to other experts; what a systematic fault does shows at all. So beside the mean the quantiles
    count. covered: the share of the exact probability on tokens that both sides name.
    """

    divergences: tuple[float, ...]
    same_top: float
    covered: float

    @classmethod
    def of(cls, pairs: Iterable[tuple[Mapping[str, float], Mapping[str, float]]]) -> "Spread":
        """Of (exact, other) distributions; where one side tells nothing is left out."""
        known = [(exact, other) for exact, other in pairs if exact and other]
        found = tuple(divergence(exact, other) for exact, other in known)
        if not known:
            return cls((), 1.0, 0.0)
        same = sum(likeliest(exact) == likeliest(other) for exact, other in known)
        covered = sum(
            math.exp(exact[token])
            for exact, other in known
            for token in exact.keys() & other.keys()
        )
        return cls(found, same / len(known), covered / len(known))

    def quantile(self, share: float) -> float:
        ordered = sorted(self.divergences)
        return ordered[min(int(share * len(ordered)), len(ordered) - 1)]

    @property
    def measures(self) -> dict[str, float]:
        """Empty for no divergences."""
        if not self.divergences:
            return {}
        mean = sum(self.divergences) / len(self.divergences)
        quantiles = {f"kl_{share:.0%}": self.quantile(share) for share in QUANTILES}
        largest = max(self.divergences)
        return {"kl_mean": mean, **quantiles, "kl_max": largest, "same_top": self.same_top}
