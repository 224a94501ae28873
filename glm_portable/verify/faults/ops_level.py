"""Faults looked for op by op: by the suite's cases."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch

from glm_portable.backends import reference
from glm_portable.ops import Ops
from glm_portable.verify.call import Call, Tensors, perform
from glm_portable.verify.cases import CASES, Case
from glm_portable.verify.faults.fault import Fault
from glm_portable.verify.judge import judge
from glm_portable.verify.results import Check, Status

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
