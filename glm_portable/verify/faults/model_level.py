"""Faults looked for in the pocket model, part by part on the exact model's inputs."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import cast

from glm_portable import pocket
from glm_portable.checkpoint import Checkpoint
from glm_portable.config import ModelConfig
from glm_portable.model import Model
from glm_portable.ops import Ops
from glm_portable.verify.faults.fault import Fault
from glm_portable.verify.layers import Runner, compare
from glm_portable.verify.model import references, verdict
from glm_portable.verify.results import Check
from glm_portable.verify.subject import Subject
from glm_portable.verify.watch import Watched

PREFILL, DECODE = 100, 3
FORMATS = ("bf16", "fp8")


@dataclass
class ModelLevel:
    """The pocket model on a backend, in the format that shows a fault. The reference's models are
    loaded once for all faults."""

    ops: Ops
    _references: dict[str, tuple[Runner, Runner]] = field(default_factory=dict)

    def __call__(self, fault: Fault | None, seed: int = 0) -> Iterator[Check]:
        faulty = self.ops if fault is None else fault.on(self.ops)
        for kind in FORMATS if fault is None else (fault.format,):
            subject = Subject("glm-pocket", pocket.FOLDER, kind, seed, partial(_spoiled, fault))
            if kind not in self._references:
                self._references[kind] = references(subject)
            watched = Watched(faulty)
            ours = Runner(subject.judged(cast(Ops, watched)), watched)
            ids = subject.prompt(PREFILL + DECODE + 1)
            for part in compare(ours, *self._references[kind], ids, DECODE):
                yield verdict(part, f"{kind}, prefill {PREFILL}, decode {DECODE}")


def _spoiled(fault: Fault | None, config: ModelConfig, ops: Ops, weights: Checkpoint) -> Model:
    model = Model(config, ops, weights)
    if fault is not None and fault.spoil is not None:
        fault.spoil(model)
    return model
