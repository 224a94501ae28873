"""A sequential test of fair coins that may be looked at after every toss.

A gambler with one unit bets on each coin at fair odds, by several strategies at once, each sure of
another bias. If the coins are fair, his wealth is a nonnegative martingale that starts at 1, so
whatever the rule of stopping it ever reaches 1/alpha with a probability of at most alpha (Ville
1939; Robbins 1970 for mixtures; Waudby-Smith and Ramdas 2024, "Estimating means of bounded random
variables by betting", for the view as bets). If they are not fair, it grows exponentially.
"""

import math
from dataclasses import dataclass, field

BIASES = (0.55, 0.65, 0.75, 0.85, 0.95, 0.995)
"""What the strategies take the chance of heads for, a share of the wealth each."""


@dataclass
class Wager:
    """alpha: how often fair coins are called unfair, at most. two_sided: bet on tails as well."""

    alpha: float
    two_sided: bool
    heads: int = 0
    tails: int = 0
    path: list[float] = field(default_factory=list)
    decided_at: int | None = None

    def toss(self, heads: bool | None) -> None:
        """One more sample; None: no coin fell, and nothing is won or lost."""
        if heads is not None:
            self.heads, self.tails = self.heads + heads, self.tails + (not heads)
        self.path.append(self.log10_wealth)
        if self.decided_at is None and self.log10_wealth >= -math.log10(self.alpha):
            self.decided_at = len(self.path)

    @property
    def log10_wealth(self) -> float:
        sides = [(self.heads, self.tails)]
        if self.two_sided:
            sides.append((self.tails, self.heads))
        logs = [
            won * math.log(2 * bias) + lost * math.log(2 * (1 - bias))
            for won, lost in sides
            for bias in BIASES
        ]
        best = max(logs)
        mean = sum(math.exp(one - best) for one in logs) / len(logs)
        return (best + math.log(mean)) / math.log(10)

    @property
    def decided(self) -> bool:
        """Whether the coins are unfair, said with an error rate of alpha."""
        return self.decided_at is not None
