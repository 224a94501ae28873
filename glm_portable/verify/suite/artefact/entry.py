"""One case of the written suite: its tensors, and how far a result may be off."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from glm_portable.verify import metrics
from glm_portable.verify.call import WIDE, Call, Tensors
from glm_portable.verify.cases import Case
from glm_portable.verify.metrics import distance, ulps
from glm_portable.verify.suite.judge import ULPS, firm_choices


@dataclass(frozen=True)
class Entry:
    """tensors: by the name of their file, "inputs" and "expected". question: what is asked, about:
    that and what is allowed, for case.json."""

    folder: str
    tensors: Mapping[str, Tensors]
    question: Mapping[str, Any]
    limits: Mapping[str, Any]

    @property
    def about(self) -> dict[str, Any]:
        return {**self.question, "outputs": dict(self.limits)}


def entry(folder: str, case: Case, call: Call, plain: Tensors, true: Tensors) -> Entry:
    """Of a case of the ops."""
    expected = {name: narrow(value) for name, value in true.items()}
    if call.op == "route":
        judged = firm_choices(call)
        expected["judged"] = judged.to(torch.uint8)
        limits = _of_router(plain, true, judged)
    else:
        limits = {name: limits_of(plain[name], true[name]) for name in true}
    question = {
        "subject": call.op, "name": case.name, "dtype": "bfloat16", "exact": case.exact,
        "attributes": dict(call.attributes),
    }  # fmt: skip
    inputs = {name: _stored(call.op, name, value) for name, value in call.tensors.items()}
    return Entry(folder, {"inputs": inputs, "expected": expected}, question, limits)


def limits_of(plain: Tensor, true: Tensor) -> dict[str, Any]:
    """What `measure` of `judge.py` may find, and what it finds in plain PyTorch."""
    off, units = distance(plain, true), ulps(plain, true)
    slope = abs(off.slope - 1)
    eps = torch.finfo(plain.dtype).eps
    limits = {
        "nonfinite": 0.0,
        "error": metrics.K * off.error + metrics.FLOOR,
        "slope": metrics.K * slope + metrics.SLOPE,
        "tail": metrics.K_TAIL * off.tail + 10 * metrics.FLOOR,
        "ulps": metrics.K_TAIL * units + max(ULPS, 10 * metrics.FLOOR / eps),
    }
    found = {"error": off.error, "slope": slope, "tail": off.tail, "ulps": units}
    kind = str(plain.dtype).removeprefix("torch.")
    return {"dtype": kind, "eps": eps, "limits": limits, "plain": found}


def narrow(x: Tensor) -> Tensor:
    """Float64 rounded once to float32: as exact as BF16 can tell, and free of the last bits in
    which machines differ."""
    return x.float().contiguous() if x.dtype == torch.float64 else x.contiguous()


def _of_router(plain: Tensors, true: Tensors, judged: Tensor) -> dict[str, Any]:
    rows = []
    for one in (plain, true):
        order = one["experts"].sort(-1).indices
        rows.append(one["weights"].gather(1, order)[judged])
    return {"weights": limits_of(*rows), "experts": {"dtype": "int32"}}


def _stored(op: str, name: str, x: Tensor) -> Tensor:
    """As a vendor's op takes it: activations and plain weights in BF16."""
    wide = (op, name) in WIDE or name.endswith("_scale")
    return x.contiguous() if wide or x.dtype != torch.float32 else x.bfloat16().contiguous()
