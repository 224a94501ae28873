"""Faults looked for in the pocket model, part by part on the exact model's inputs."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

from glm_portable import pocket
from glm_portable.checkpoint import Checkpoint
from glm_portable.config import ModelConfig
from glm_portable.model import Model
from glm_portable.ops import Ops
from glm_portable.verify.faults.fault import Fault
from glm_portable.verify.model import Options, checks
from glm_portable.verify.results import Check
from glm_portable.verify.subject import Subject


@dataclass(frozen=True)
class ModelLevel:
    """The pocket model, teacher-forced, in the format that shows the fault; honest, in both."""

    ops: Ops
    options: Options = Options(prefill=40, decode=3)

    def __call__(self, fault: Fault | None, seed: int = 0) -> Iterator[Check]:
        backend = self.ops if fault is None else fault.on(self.ops)
        for kind in ("bf16", "fp8") if fault is None else (fault.format,):
            build = partial(_spoiled, fault)
            subject = Subject("glm-pocket", pocket.FOLDER, kind, seed, build)
            yield from checks(backend, subject, self.options)


def _spoiled(fault: Fault | None, config: ModelConfig, ops: Ops, weights: Checkpoint) -> Model:
    model = Model(config, ops, weights)
    if fault is not None and fault.spoil is not None:
        fault.spoil(model)
    return model
