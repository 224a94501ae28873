"""The sequential test: how often it is wrong, and how soon it is right, by simulation."""

import math
import random

import pytest

from glm_portable.verify.difference.sequential import Wager

RUNS, TOSSES = 150, 200


def run(bias: float, seed: int, alpha: float, two_sided: bool) -> int | None:
    """After how many tosses a coin is called unfair, looked at after every one."""
    coin = random.Random(seed)
    wager = Wager(alpha, two_sided)
    for _ in range(TOSSES):
        wager.toss(coin.random() < bias)
        if wager.decided:
            return wager.decided_at
    return None


@pytest.mark.parametrize("two_sided", [True, False])
def test_fair_coins_are_rarely_called_unfair(two_sided: bool) -> None:
    """At most alpha of them; the allowance is three standard deviations."""
    alpha = 0.1
    alarms = sum(run(0.5, seed, alpha, two_sided) is not None for seed in range(RUNS))
    assert alarms <= RUNS * alpha + 3 * math.sqrt(RUNS * alpha * (1 - alpha))
    assert alarms > 0  # it is no test that never decides


@pytest.mark.parametrize(
    "bias, power, within", [(0.75, 0.99, 80), (0.65, 0.8, 200), (1.0, 1.0, 12)]
)
def test_unfair_coins_are_found(bias: float, power: float, within: int) -> None:
    found = [run(bias, seed, 0.05, True) for seed in range(60)]
    assert sum(one is not None for one in found) >= power * len(found)
    assert sorted(one or TOSSES for one in found)[len(found) // 2] <= within


def test_tails_count_on_one_side_only() -> None:
    one, two = Wager(0.05, False), Wager(0.05, True)
    for _ in range(30):
        one.toss(False)
        two.toss(False)
    assert two.decided and not one.decided


def test_wealth_is_a_martingale() -> None:
    """The mean over both outcomes of the next fair toss is the wealth before it."""
    wager = Wager(1e-9, True)
    for heads in (True, True, False, True):
        before = 10**wager.log10_wealth
        after = []
        for outcome in (True, False):
            copy = Wager(1e-9, True, wager.heads, wager.tails)
            copy.toss(outcome)
            after.append(10**copy.log10_wealth)
        assert sum(after) / 2 == pytest.approx(before)
        wager.toss(heads)


def test_no_coin_changes_nothing() -> None:
    wager = Wager(0.05, True)
    wager.toss(None)
    assert wager.path == [pytest.approx(0)] and not wager.decided
