"""What every check is given, and how what it notes becomes a `Check`."""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from glm_portable.errors import UsageError
from glm_portable.serve.chat import Format
from glm_portable.verify.endpoint.chat import Question, Said, ask, ask_streaming
from glm_portable.verify.endpoint.client import Broken, Client, Refused, Stream
from glm_portable.verify.endpoint.reference import Reference
from glm_portable.verify.results import Check, Status


@dataclass(frozen=True)
class Settings:
    """How much is asked.

    samples: tasks of the comparison under load. concurrency: requests at once there. repeats: of
    one request, for determinism. longest: tokens of the longest prompt that is sent. tolerance:
    how many times plain BF16's own error a server's log probabilities may be off. seed: of the
    tasks. every: only every so-manieth of the questions is asked.
    """

    samples: int = 48
    concurrency: int = 32
    repeats: int = 4
    longest: int = 32768
    tolerance: float = 3.0
    seed: int = 9000
    every: int = 1

    def __post_init__(self) -> None:
        for name in ("samples", "concurrency", "repeats", "longest", "tolerance"):
            if getattr(self, name) <= 0:
                raise UsageError(f"{name} is {getattr(self, name)}; it has to be more than 0.")

    @property
    def most(self) -> int:
        """Connections that are needed at once."""
        return self.concurrency + 4


@dataclass
class Exam:
    """A server under examination. window: tokens of prompt and answer together, if it says so.

    heard: every whole answer so far, for the detector of repetition.
    """

    client: Client
    model: str
    window: int | None
    reference: Reference | None
    settings: Settings
    heard: list[tuple[Question, Said]] = field(default_factory=list)
    _known: dict[str, Said] = field(default_factory=dict)

    def some(self, questions: Sequence[Question]) -> list[Question]:
        """Those that are asked here."""
        return list(questions[:: self.settings.every])

    def once(self, question: Question, **extra: Any) -> Said:
        """The answer to a question that has perhaps been asked before, alone: then that answer."""
        key = json.dumps({**question.body(self.model), **extra})
        if key not in self._known:
            self._known[key] = self.ask(question, **extra)
        return self._known[key]

    def ask(self, question: Question, **extra: Any) -> Said:
        said = ask(self.client, self.model, question, **extra)
        self.heard.append((question, said))
        return said

    def stream(self, question: Question, **extra: Any) -> tuple[Said, Stream]:
        return ask_streaming(self.client, self.model, question, **extra)

    @property
    def family(self) -> Format | None:
        return self.reference.family if self.reference else None


QUICK = Settings(samples=8, concurrency=8, repeats=2, longest=1200, every=3)
"""A look of under a minute at the pocket model on two cores."""


class Skipped(Exception):
    """It cannot be looked at here; the sentence says why, and what would help."""


@dataclass
class Notes:
    """What a check writes down as it goes."""

    findings: list[str] = field(default_factory=list)
    measures: dict[str, float] = field(default_factory=dict)
    series: dict[str, list[float]] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)

    def fail(self, sent: str, came: str, why: str) -> None:
        """One finding: what was sent, what came back, and what it breaks."""
        self.findings.append(f"{sent}: {came} ({why})")


@dataclass(frozen=True)
class Item:
    """A check that can be run. group: its name for --only. look: does it, raising what it meets."""

    group: str
    subject: str
    name: str
    look: Callable[[Exam, Notes], None]


def judge(item: Item, exam: Exam) -> Check:
    """Run one check; what the server refuses is unsupported, what breaks is a failure."""
    notes, begin = Notes(), time.monotonic()
    status = Status.PASS
    try:
        item.look(exam, notes)
    except Refused as refused:
        status = Status.UNSUPPORTED
        notes.remarks.append(f"the server answered {refused}")
    except Skipped as reason:
        status = Status.SKIPPED
        notes.remarks.append(str(reason))
    except Broken as broken:
        notes.findings.append(f"{broken}: an answer is missing that clients wait for")
    if notes.findings:
        status = Status.FAIL
    return Check(
        level="endpoint",
        subject=item.subject,
        name=item.name,
        status=status,
        findings=tuple(notes.findings),
        measures=notes.measures,
        series=notes.series,
        note="; ".join(notes.remarks),
        seconds=time.monotonic() - begin,
    )
