"""The table that `verify faults` prints, in Markdown."""

from collections.abc import Mapping, Sequence

from glm_portable.verify.faults.fault import LEVELS, Fault, Level
from glm_portable.verify.faults.trial import Trial

HEADINGS = ("fault", "in", "stands for", "op by op", "in the model", "noticed by")


def line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def heading() -> str:
    return f"{line(HEADINGS)}\n{line(['---'] * len(HEADINGS))}"


def row(fault: Fault, trials: Mapping[Level, Trial]) -> str:
    """Cells of HEADINGS; where a fault need not be noticed stands why."""
    verdicts = [_cell(fault, level, trials.get(level)) for level in LEVELS]
    noticed = next((t.killed_by for t in trials.values() if t.killed), "")
    return line([fault.name, fault.op, fault.stands_for, *verdicts, noticed])


def _cell(fault: Fault, level: Level, trial: Trial | None) -> str:
    if level not in fault.levels:
        return fault.why
    if trial is None:
        return "not run"
    return "killed" if trial.killed else "SURVIVES"
