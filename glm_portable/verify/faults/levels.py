"""The two levels at which faults are looked for: op by op, and in the pocket model."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch

from glm_portable import pocket
from glm_portable.backends import reference
from glm_portable.checkpoint import Checkpoint
from glm_portable.config import ModelConfig
from glm_portable.model import Model
from glm_portable.ops import Ops
from glm_portable.verify.call import Call, Tensors, perform
from glm_portable.verify.cases import CASES, Case
from glm_portable.verify.faults.fault import Fault
from glm_portable.verify.judge import judge
from glm_portable.verify.model import Options, checks
from glm_portable.verify.results import Check, Status
from glm_portable.verify.subject import Subject

TYPES = (torch.bfloat16, torch.float32)
"""BF16 first: a fault that only float32 shows is one that serving would not notice."""


@dataclass(frozen=True)
class _Yardstick:
    """A case's inputs, and what does not depend on the backend."""

    call: Call
    plain: Tensors
    exact: Tensors


@dataclass
class OpsLevel:
    """The suite's cases on a backend. The reference's results are computed once for all faults."""

    ops: Ops
    cases: Sequence[Case] = tuple(CASES)
    _kept: dict[tuple[str, torch.dtype, int], _Yardstick] = field(default_factory=dict)

    def __call__(self, fault: Fault | None, seed: int = 0) -> Iterator[Check]:
        """Of a fault, only checks that run what is faulty."""
        backend = self.ops if fault is None else fault.on(self.ops)
        for dtype in TYPES:
            for case in self.cases:
                if dtype == torch.float32 and case.rounds_within:
                    continue
                if fault is None or fault.reaches(case.op):
                    yield self._check(case, dtype, seed, backend, keep=fault is not None)

    def _check(self, case: Case, dtype: torch.dtype, seed: int, backend: Ops, keep: bool) -> Check:
        key = str(case), dtype, seed
        known = self._kept.get(key) or _yardstick(case, dtype, seed)
        if keep:
            self._kept[key] = known
        actual = perform(known.call, backend, dtype)
        found = judge(known.call, actual, known.plain, known.exact, case.exact)
        name = f"{case.name}, {str(dtype).removeprefix('torch.')}"
        status = Status.FAIL if found.findings else Status.PASS
        return Check("ops", case.op, name, status, found.findings, found.measures)


def _yardstick(case: Case, dtype: torch.dtype, seed: int) -> _Yardstick:
    call = case.call(seed)
    return _Yardstick(
        call, perform(call, reference, dtype), perform(call, reference, torch.float64)
    )


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
