"""How long a backend's ops take, on the suite's cases, with plain PyTorch on the host beside."""

import statistics
import time
from collections.abc import Callable, Iterable, Iterator

import torch

from glm_portable.backends import reference
from glm_portable.errors import UsageError
from glm_portable.ops import Ops
from glm_portable.verify.call import Tensors, bind
from glm_portable.verify.cases import Case
from glm_portable.verify.results import Check, Status

BUDGET = 0.2
"""Seconds for a case, once warm."""
LEAST, MOST = 3, 50


def timed(
    ops: Ops, cases: Iterable[Case], seed: int = 0, dtype: torch.dtype = torch.bfloat16
) -> Iterator[Check]:
    """A check for each case, which passes: measures "ms" and "reference_ms" are medians."""
    for case in cases:
        call = case.call(seed)
        try:
            ours = median(bind(call, ops, dtype), ops.device)
        except UsageError as error:
            yield Check("ops", case.op, case.name, Status.UNSUPPORTED, note=str(error))
            continue
        theirs = median(bind(call, reference, dtype), reference.device)
        measures = {"ms": ours * 1e3, "reference_ms": theirs * 1e3}
        note = (
            f"{measures['ms']:.3g} ms, the reference on the host {measures['reference_ms']:.3g} ms"
        )
        yield Check("ops", case.op, case.name, Status.PASS, measures=measures, note=note)


def median(run: Callable[[], Tensors], device: torch.device) -> float:
    """Seconds of a run on the device, the first two left out."""
    for _ in range(2):
        run()
    taken: list[float] = []
    while len(taken) < LEAST or (sum(taken) < BUDGET and len(taken) < MOST):
        _wait(device)
        begin = time.perf_counter()
        run()
        _wait(device)
        taken.append(time.perf_counter() - begin)
    return statistics.median(taken)


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        torch.get_device_module(device).synchronize()
