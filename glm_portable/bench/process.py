"""A worker process and how busy the machine was with other things while it ran."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from types import TracebackType
from typing import Any

from glm_portable.errors import UsageError

QUIET = 0.12


@dataclass(frozen=True)
class Sample:
    """One repetition: seconds, own CPU seconds, and the share of all cores others used."""

    wall: float
    cpu: float
    foreign: float


@dataclass
class Samples:
    """The repetitions of one task on one side."""

    taken: list[Sample] = field(default_factory=list)

    @property
    def quiet(self) -> list[Sample]:
        return [s for s in self.taken if s.foreign < QUIET]

    @property
    def wall(self) -> float:
        """Median seconds of the undisturbed repetitions; of all, if fewer than three were."""
        chosen = self.quiet if len(self.quiet) >= 3 else self.taken
        return median(s.wall for s in chosen)

    @property
    def best(self) -> float:
        """The shortest seconds: for a limit, which disturbance only hides."""
        return min(s.wall for s in self.taken)

    @property
    def cpu(self) -> float:
        """Median CPU seconds, which depend less on what else runs."""
        return median(s.cpu for s in self.taken)


class Worker:
    """`glm_portable.bench.worker` for one side; `loaded` is its answer to the loading."""

    def __init__(self, side: str, folder: Path, dtype: str, backend: str, threads: int) -> None:
        self.side = side
        self._warm: set[tuple[Any, ...]] = set()
        command = [sys.executable, "-m", "glm_portable.bench.worker", side, str(folder)]
        command += ["--dtype", dtype, "--backend", backend, "--threads", str(threads)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )
        self.loaded = self._answer()

    def __enter__(self) -> "Worker":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()

    def ask(self, task: str, **arguments: int) -> dict[str, Any]:
        """Run one task once more."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"task": task, **arguments}) + "\n")
        return self._answer()

    def sample(self, task: str, **arguments: int) -> Sample:
        """As `ask`, with the load of the machine meanwhile; a first time is not counted."""
        if (task, *arguments.items()) not in self._warm:
            self._warm.add((task, *arguments.items()))
            self.ask(task, **arguments)
        before = _busy_seconds()
        answer = self.ask(task, **arguments)
        others = _busy_seconds() - before - answer["cpu"]
        cores = os.cpu_count() or 1
        return Sample(answer["wall"], answer["cpu"], max(0.0, others / (answer["wall"] * cores)))

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            code = self._process.wait()
            raise UsageError(
                f"bench: the {self.side} process ended with {code}; see above for why."
            )
        answer: dict[str, Any] = json.loads(line)
        return answer


def _busy_seconds() -> float:
    """Processor seconds all processes together have used; 0 where the system does not say."""
    stat = Path("/proc/stat")
    if not stat.exists():
        return 0.0
    user, nice, system, _, _, irq, softirq, steal = map(
        int, stat.read_text().split("\n", 1)[0].split()[1:9]
    )
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")
