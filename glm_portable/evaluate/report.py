"""What an evaluation found: totals, a table for people and JSON for programs."""

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any

from rich.table import Table

from glm_portable.evaluate.ask import Answer
from glm_portable.evaluate.scoring import Score
from glm_portable.tasks import Case


@dataclass(frozen=True)
class Result:
    """One question, what was answered, and how that was judged."""

    case: Case
    answer: Answer
    score: Score


@dataclass(frozen=True)
class Summary:
    """Shares between 0 and 1 of `count` questions; `named` is None where no tool was asked for."""

    count: int
    correct: float
    obeyed: float
    named: float | None

    @classmethod
    def of(cls, results: Iterable[Result]) -> "Summary | None":
        """None for no results."""
        scores = [result.score for result in results]
        if not scores:
            return None
        named = [score.named for score in scores if score.named is not None]
        return cls(
            len(scores),
            sum(score.correct for score in scores) / len(scores),
            sum(score.obeyed for score in scores) / len(scores),
            sum(named) / len(named) if named else None,
        )


@dataclass(frozen=True)
class Report:
    """All results, in the order of asking."""

    results: tuple[Result, ...]

    def skills(self) -> list[str]:
        return list(dict.fromkeys(result.case.skill for result in self.results))

    def summary(self, thinking: bool, skill: str | None = None) -> Summary | None:
        """Of one skill or of all, with thinking or without; None where nothing was asked."""
        return Summary.of(
            result
            for result in self.results
            if result.case.thinking == thinking and skill in (None, result.case.skill)
        )

    def wrong(self) -> list[Result]:
        return [result for result in self.results if not result.score.correct]

    def table(self) -> Table:
        """A row for each skill and one for all."""
        table = Table(title=f"{len(self.results)} held-out questions")
        table.add_column("skill")
        for mode in ("thinking", "off"):
            for column in ("right", "switch obeyed", "tool named"):
                table.add_column(f"{mode}\n{column}", justify="right")
        for skill in self.skills():
            table.add_row(skill, *self._cells(skill))
        table.add_section()
        table.add_row("all", *self._cells(None))
        return table

    def _cells(self, skill: str | None) -> list[str]:
        columns: list[Callable[[Summary], float | None]] = [
            lambda found: found.correct,
            lambda found: found.obeyed,
            lambda found: found.named if skill is not None else None,
        ]
        return [
            _percent(column(summary) if summary is not None else None)
            for summary in (self.summary(thinking, skill) for thinking in (True, False))
            for column in columns
        ]

    def to_json(self) -> dict[str, Any]:
        """Summaries by skill and for all, and every wrong answer in full."""
        return {
            "all": self._modes(None),
            "skills": {skill: self._modes(skill) for skill in self.skills()},
            "wrong": [asdict(result) for result in self.wrong()],
        }

    def _modes(self, skill: str | None) -> dict[str, Any]:
        summaries = {"thinking": self.summary(True, skill), "off": self.summary(False, skill)}
        return {mode: asdict(found) for mode, found in summaries.items() if found is not None}


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f} %"
