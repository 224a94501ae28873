"""From which acceptance on drafts pay.

A step with k drafts gives a sequence the drafts up to the first wrong one, and a token more. If
each is right with probability a, that is 1 + a + ... + a^k tokens on average (Leviathan, Kalman and
Matias 2023, equation 1). The step pays if that is more than its time in steps without drafts.
"""

_HALVINGS = 40


def tokens_a_step(acceptance: float, k: int) -> float:
    """On average, of a sequence whose drafts are each right with this probability."""
    return sum(acceptance**place for place in range(k + 1))


def least_acceptance(cost: float, k: int) -> float | None:
    """From which acceptance on k drafts pay; None if they never do.

    cost: seconds of a step with k drafts over those of a step without.
    """
    if cost > k + 1:
        return None
    low, high = 0.0, 1.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if tokens_a_step(middle, k) < cost else (low, middle)
    return high
