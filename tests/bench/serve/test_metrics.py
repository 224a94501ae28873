"""The figures of three requests, worked out by hand."""

import pytest

from glm_portable.bench.serve.metrics import summarize
from glm_portable.bench.serve.stream import Record

# Started at 10, 10.5 and 11 s. TPOT: (2.5 - 0.5) / 4 = 0.5 of the first, (4 - 1) / 2 = 1.5 of the
# second (two tokens came in one event), none of the third, which has one token.
FIRST = Record(100, 10.0, True, "", 0.5, 2.5, [0.5, 0.5, 0.5, 0.5], 5, ["a"])
SECOND = Record(50, 10.5, True, "", 1.0, 4.0, [3.0], 3, ["b"])
THIRD = Record(10, 11.0, True, "", 2.0, 2.0, [], 1, ["c"])
FAILED = Record(1000, 10.0, False, "status 500", 9.0, 9.0, [9.0], 1000, [])


def test_means_medians_and_percentiles() -> None:
    found = summarize([FIRST, SECOND, FAILED, THIRD], 8.0, percentiles=[50, 99.9])
    ms = {name: value for name, value in found.items() if name.endswith("_ms")}
    expected = {
        "ttft": (3500 / 3, 1000, [500, 1000, 2000]),
        "tpot": (1000, 1000, [500, 1500]),
        "itl": (1000, 500, [500, 500, 500, 500, 3000]),
        "e2el": (8500 / 3, 2500, [2000, 2500, 4000]),
    }
    for name, (mean, median, values) in expected.items():
        variance = sum((value - mean) ** 2 for value in values) / len(values)
        assert ms[f"mean_{name}_ms"] == pytest.approx(mean)
        assert ms[f"median_{name}_ms"] == ms[f"p50_{name}_ms"] == pytest.approx(median)
        assert ms[f"std_{name}_ms"] == pytest.approx(variance**0.5)
        rank = 0.999 * (len(values) - 1)  # between the last two, by linear interpolation
        low, high = values[-2:]
        at = low + (rank - (len(values) - 2)) * (high - low)
        assert ms[f"p99.9_{name}_ms"] == pytest.approx(at)
    assert len(ms) == 4 * 5


def test_totals_and_rates() -> None:
    found = summarize([FIRST, SECOND, FAILED, THIRD], 8.0)
    assert (found["completed"], found["failed"]) == (3, 1)
    assert (found["total_input_tokens"], found["total_output_tokens"]) == (160, 9)
    assert found["request_throughput"] == 3 / 8
    assert found["output_throughput"] == 9 / 8
    assert found["total_token_throughput"] == 169 / 8
    assert found["output_lens"] == [5, 3, 0, 1]
    assert found["errors"] == ["", "", "status 500", ""]
    assert found["request_goodput"] is None


@pytest.mark.parametrize(
    ("objectives", "met"),
    [
        ({"ttft": 1000}, 2),
        ({"ttft": 1000, "tpot": 500}, 1),
        ({"tpot": 500}, 2),  # one token has no time per further token
        ({"e2el": 2500}, 2),
        ({"e2el": 1}, 0),
    ],
)
def test_goodput(objectives: dict[str, float], met: int) -> None:
    assert summarize([FIRST, SECOND, FAILED, THIRD], 4.0, goodput=objectives)[
        "request_goodput"
    ] == pytest.approx(met / 4)


def test_peaks_are_of_seconds_since_the_first_request() -> None:
    found = summarize([FIRST, SECOND, THIRD], 8.0)
    # Events: at 0.5 1 1.5 2 2.5 of FIRST, 1.5 4.5 of SECOND, 3 of THIRD.
    assert found["max_output_tokens_per_s"] == 3  # second 1: at 1, 1.5 and 1.5
    assert found["max_concurrent_requests"] == 3


def test_without_usage_an_event_is_a_token() -> None:
    record = Record(1, 0.0, True, "", 1.0, 3.0, [1.0, 1.0])
    assert summarize([record], 1.0)["total_output_tokens"] == 3


def test_nothing_succeeded() -> None:
    found = summarize([FAILED], 2.0, goodput={"ttft": 1})
    assert found["completed"] == 0 and found["mean_ttft_ms"] == 0 and found["request_goodput"] == 0
