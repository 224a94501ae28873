"""Distances between distributions of which only the likeliest tokens are known."""

import math

import pytest

from glm_portable.verify.endpoint.distance import Spread, divergence

EVEN = {"a": math.log(0.5), "b": math.log(0.5)}
SURE = {"a": math.log(0.9), "b": math.log(0.1)}


def test_divergence_of_whole_distributions() -> None:
    assert divergence(EVEN, EVEN) == pytest.approx(0, abs=1e-9)
    expected = 0.5 * math.log(0.5 / 0.9) + 0.5 * math.log(0.5 / 0.1)
    assert divergence(EVEN, SURE) == pytest.approx(expected, rel=1e-6)


def test_what_one_side_does_not_name_counts_together() -> None:
    """The rest: 0.5 against 0.1."""
    expected = 0.5 * math.log(0.5 / 0.9) + 0.5 * math.log(0.5 / 0.1)
    assert divergence(EVEN, {"a": math.log(0.9), "c": math.log(0.05)}) == pytest.approx(expected)
    assert divergence(EVEN, {"x": 0.0}) < 1e-6  # no token in common: nothing is known


def test_spread() -> None:
    spread = Spread.of([(EVEN, EVEN), (EVEN, SURE), (SURE, EVEN), ({}, SURE)])
    assert len(spread.divergences) == 3
    assert spread.covered == pytest.approx(1)
    assert spread.measures["kl_50%"] == sorted(spread.divergences)[1]
    assert spread.measures["kl_max"] == max(spread.divergences)
    swapped = {"a": SURE["b"], "b": SURE["a"]}
    assert Spread.of([(SURE, SURE), (SURE, swapped)]).same_top == 0.5


def test_nothing_to_compare() -> None:
    assert Spread.of([({}, SURE)]).measures == {}
