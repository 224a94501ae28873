"""Faults looked for op by op: by what `verify ops` checks."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch

from glm_portable.ops import Ops
from glm_portable.verify.call import Tensors
from glm_portable.verify.cases import CASES, Case
from glm_portable.verify.faults.fault import Fault
from glm_portable.verify.results import Check
from glm_portable.verify.suite.ops import check, yardstick

TYPES = (torch.bfloat16, torch.float32)
"""BF16 first: a fault that only float32 shows is one that serving would not notice."""


@dataclass
class OpsLevel:
    """The suite's cases on a backend. The reference's results are computed once for all faults."""

    ops: Ops
    cases: Sequence[Case] = tuple(CASES)
    _kept: dict[tuple[str, int, torch.dtype], tuple[Tensors, Tensors]] = field(default_factory=dict)

    def __call__(self, fault: Fault | None, seed: int = 0) -> Iterator[Check]:
        """Of a fault, only checks that run what is faulty; each case twice only where once was not
        enough."""
        if fault is None:
            for dtype in TYPES:
                yield from _named(check(self.ops, self.cases, seed, dtype), dtype)
            return
        faulty, cases = fault.on(self.ops), [c for c in self.cases if fault.reaches(c.op)]
        for again in (False, True):
            for dtype in TYPES:
                yield from _named(check(faulty, cases, seed, dtype, again, self._known), dtype)

    def _known(self, case: Case, seed: int, dtype: torch.dtype) -> tuple[Tensors, Tensors]:
        key = str(case), seed, dtype
        if key not in self._kept:
            self._kept[key] = yardstick(case, seed, dtype)
        return self._kept[key]


def _named(checks: Iterator[Check], dtype: torch.dtype) -> Iterator[Check]:
    """With the type in the name."""
    for one in checks:
        yield replace(one, name=f"{one.name}, {str(dtype).removeprefix('torch.')}")
