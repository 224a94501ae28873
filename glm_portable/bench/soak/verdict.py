"""What of a soak is against the rules, in sentences; none means that it passed."""

from collections.abc import Iterator, Mapping
from typing import Any

from glm_portable.bench.soak.run import Found


def violations(
    found: Found,
    *,
    warm_up: float,
    max_drift: float,
    max_unlike: float,
    before: Mapping[str, Any] | None = None,
    after: Mapping[str, Any] | None = None,
) -> Iterator[str]:
    """warm_up: seconds. max_drift, max_unlike: shares. before, after: evaluation reports."""
    tally = found.tally
    for problem, count in tally.problems.most_common():
        yield f"{count} x {problem}"
    if not tally.compared:
        yield "no answer could be compared with the one given alone"
    elif tally.unlike.total() > max_unlike * tally.compared:
        yield (
            f"{tally.unlike.total()} of {tally.compared} answers are unlike those given alone; "
            f"{max_unlike:.1%} may be"
        )
    drift = found.memory.drift(warm_up)
    if drift > max_drift:
        yield (
            f"resident memory grew by {drift:.1%} after {warm_up / 60:.1f} minutes; "
            f"{max_drift:.1%} is allowed"
        )
    for name, value in (found.metrics or {}).items():
        if value:
            yield f"{name} is {value:g} after the load, not 0"
    if before is not None and after is not None and before["all"] != after["all"]:
        yield f"the evaluation scores {_shares(after)}, where it was {_shares(before)}"


def _shares(report: Mapping[str, Any]) -> str:
    modes = report["all"].items()
    return ", ".join(f"{100 * found['correct']:.1f} % ({mode})" for mode, found in modes)
