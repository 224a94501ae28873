"""Faults looked for in the pocket model, part by part on the exact model's inputs."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast

import torch

from glm_portable import pocket
from glm_portable.backends import reference
from glm_portable.checkpoint import Checkpoint
from glm_portable.config import ModelConfig
from glm_portable.model import Model
from glm_portable.ops import Ops
from glm_portable.verify.call import OPS
from glm_portable.verify.faults.fault import Fault, Op
from glm_portable.verify.model.checks import verdict
from glm_portable.verify.model.layers import Compared, Runner, compare
from glm_portable.verify.results import Check
from glm_portable.verify.subject import Subject
from glm_portable.verify.watch import Watched

PREFILL, DECODE = 100, 3
FORMATS = ("bf16", "fp8")


class Remembering:
    """The reference, which computes what it is asked once; rewound, it hands out the same results
    in the same order, for it is asked the same."""

    def __init__(self) -> None:
        self._kept: list[Any] = []
        self._next = 0

    def rewind(self) -> None:
        self._next = 0

    def __getattr__(self, name: str) -> Any:
        found = getattr(reference, name)
        return partial(self._result, found) if name in OPS else found

    def _result(self, op: Op, *arguments: Any) -> Any:
        if self._next == len(self._kept):
            self._kept.append(op(*arguments))
        self._next += 1
        return self._kept[self._next - 1]


@dataclass(frozen=True)
class _Yardsticks:
    """The subject on the reference, in BF16 and in float64."""

    memories: tuple[Remembering, Remembering]
    plain: Runner
    exact: Runner

    @classmethod
    def of(cls, subject: Subject) -> "_Yardsticks":
        memories, runners = (Remembering(), Remembering()), []
        for memory, dtype in zip(memories, (torch.bfloat16, torch.float64), strict=True):
            watched = Watched(cast(Ops, memory))
            runners.append(Runner(subject.model(dtype, cast(Ops, watched)), watched))
        return cls(memories, runners[0], runners[1])

    def rewind(self) -> None:
        for memory in self.memories:
            memory.rewind()


@dataclass
class ModelLevel:
    """The pocket model on a backend, in the format that shows a fault; without one, in both.

    The reference's part of it is computed once for all faults.
    """

    ops: Ops
    _kept: dict[tuple[str, int], _Yardsticks] = field(default_factory=dict)

    def __call__(self, fault: Fault | None, seed: int = 0) -> Iterator[Check]:
        for kind in FORMATS if fault is None else (fault.format,):
            known = self._known(kind, seed)
            known.rewind()
            for part in self._compared(fault, kind, seed, known):
                yield verdict(part, f"{kind}, prefill {PREFILL}, decode {DECODE}")

    def _known(self, kind: str, seed: int) -> _Yardsticks:
        """Of the latest seed. Filled by an honest comparison to its end, as that of a fault may
        stop anywhere, and what follows would not find the keys that were stored before."""
        if (kind, seed) not in self._kept:
            self._kept = {key: value for key, value in self._kept.items() if key[1] == seed}
            known = _Yardsticks.of(_subject(None, kind, seed))
            for _ in self._compared(None, kind, seed, known):
                continue
            self._kept[kind, seed] = known
        return self._kept[kind, seed]

    def _compared(
        self, fault: Fault | None, kind: str, seed: int, known: _Yardsticks
    ) -> Iterator[Compared]:
        subject = _subject(fault, kind, seed)
        watched = Watched(self.ops if fault is None else fault.on(self.ops))
        ours = Runner(subject.judged(cast(Ops, watched)), watched)
        ids = subject.prompt(PREFILL + DECODE + 1)
        yield from compare(ours, known.plain, known.exact, ids, DECODE)


def _subject(fault: Fault | None, kind: str, seed: int) -> Subject:
    return Subject("glm-pocket", pocket.FOLDER, kind, seed, partial(_spoiled, fault))


def _spoiled(fault: Fault | None, config: ModelConfig, ops: Ops, weights: Checkpoint) -> Model:
    model = Model(config, ops, weights)
    if fault is not None and fault.spoil is not None:
        fault.spoil(model)
    return model
