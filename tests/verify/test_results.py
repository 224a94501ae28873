"""Verdicts of a report."""

import pytest

from glm_portable.verify.results import Check, Report, Status


def check(status: Status) -> Check:
    findings = ("error 3 exceeds 1",) if status is Status.FAIL else ()
    return Check("ops", "linear", "one token", status, findings)


@pytest.mark.parametrize(
    "statuses, code",
    [
        ([], 3),
        ([Status.SKIPPED], 3),
        ([Status.PASS, Status.SKIPPED], 0),
        ([Status.PASS, Status.UNSUPPORTED], 2),
        ([Status.UNSUPPORTED, Status.FAIL, Status.PASS], 1),
    ],
)
def test_exit_code(statuses: list[Status], code: int) -> None:
    assert Report("ops", {}, [check(s) for s in statuses]).exit_code == code


def test_failing_needs_a_finding_and_passing_has_none() -> None:
    with pytest.raises(AssertionError):
        Check("ops", "linear", "one token", Status.FAIL)
    with pytest.raises(AssertionError):
        Check("ops", "linear", "one token", Status.PASS, ("error 3 exceeds 1",))
