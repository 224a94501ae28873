"""What many checks come to: ratios that no NaN hides in, and the worst of a group."""

import math

import pytest

from glm_portable.verify.report.groups import grouped, kernels, ratio
from glm_portable.verify.report.meaning import why
from glm_portable.verify.report.text import figure
from glm_portable.verify.results import Check, Status
from tests.verify.report.samples import SKIPPED, hostile, layer, op


@pytest.mark.parametrize(
    ("error", "allowed", "share"),
    [
        (0.2, 0.4, 0.5),
        (0.0, 0.0, 0.0),
        (1e-9, 0.0, math.inf),
        (math.nan, 1.0, math.inf),
        (math.inf, 1.0, math.inf),
        (1.0, math.nan, math.inf),
    ],
)
def test_ratio(error: float, allowed: float, share: float) -> None:
    assert ratio(op("a", error, allowed)) == share


def test_what_was_not_measured_has_no_ratio() -> None:
    assert ratio(SKIPPED) is None
    assert grouped([SKIPPED])["ops"][0].worst is None


@pytest.mark.parametrize("place", [0, 1, 2])
def test_nan_is_the_worst_wherever_it_stands(place: int) -> None:
    checks = [op("a"), op("b")]
    checks.insert(place, op("nan", math.nan))
    (group,) = grouped(checks)["ops"]
    assert group.worst is checks[place] and group.status is Status.FAIL


def test_layers_are_one_group_and_parts_are_others() -> None:
    mtp = Check("model", "layer 5 (MTP)", "20 tokens", Status.PASS)
    labels = [group.label for group in grouped([*map(layer, range(5)), mtp])["model"]]
    assert labels == ["layer 0 to 4", "layer 5 (MTP)"]


def test_levels_and_subjects_keep_their_order() -> None:
    found = grouped([layer(0), op("a", subject="b"), op("b", subject="a"), layer(1)])
    assert list(found) == ["model", "ops"]
    assert [group.label for group in found["ops"]] == ["b", "a"]


def test_the_most_launched_kernel_is_first() -> None:
    assert list(kernels([layer(0), op("a")]).items()) == [("grouped_gemm", 2), ("attend", 1)]


def test_why_a_failure_matters() -> None:
    assert why(op("a")) == []
    assert why(hostile()) == ["Clients of this server get something else than the model's own "
                              "template and tokens say."]  # fmt: skip
    assert ["Rounding" in sentence for sentence in why(layer(3, 0, 1))] == [False, True]
    slope = Check("ops", "route", "a", Status.FAIL, ("slope 2.0 is further than 0.1 from 1",) * 2)
    assert len(why(slope)) == 2 and "scaled by a constant" in why(slope)[1]


@pytest.mark.parametrize(
    ("value", "text"),
    [(3.0, "3"), (0.00123456, "0.00123"), (math.nan, "nan"), (-math.inf, "-inf"), (1e12, "1e+12")],
)
def test_figures(value: float, text: str) -> None:
    assert figure(value) == text
