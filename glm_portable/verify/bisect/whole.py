"""The whole model as it is used, against what its parts gave one by one."""

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor

from glm_portable.model import Model
from glm_portable.ops import Ops
from glm_portable.verify.bisect.part_rule import Judged, by_step, judge_free
from glm_portable.verify.bisect.record import Arguments, host_copy
from glm_portable.verify.bisect.steered import Steered
from glm_portable.verify.bisect.sweep import Machine, Sweep


class Streams(Steered):
    """sums: the residual stream that each norm saw, copied before anyone can write over it."""

    def __init__(self, ops: Ops) -> None:
        super().__init__(ops)
        self.sums: list[Tensor] = []

    def perform(self, op: str, arguments: Arguments, run: Callable[[Arguments], Any]) -> Any:
        found = super().perform(op, arguments, run)
        if op == "rms_norm":
            self.sums.append(host_copy(found[1]).double())
        return found


def run_whole(sweep: Sweep, machine: Machine) -> tuple[str, Judged] | None:
    """The first part behind which it is beyond the rule, and how it is judged there; or None.

    A layer's input norm is every second one, and the last one is the head's.
    """
    streams = Streams(machine.ops)
    model = Model(sweep.config, cast(Ops, streams), machine.weights)
    config, scenario, device = sweep.config, sweep.scenario, machine.ops.device
    count = config.num_hidden_layers
    caches = [scenario.caches(config, machine.dtype, device) for _ in range(count + 1)]
    left: list[list[Tensor]] = [[] for _ in sweep.names]
    with torch.inference_mode():
        for s in range(len(scenario.steps)):
            streams.steer([choices[s] for choices in sweep.choices if choices])
            streams.sums.clear()
            step = scenario.build(s, device)
            hidden = model.forward(scenario.ids(s).to(device), step, caches[:count])
            for i, x in enumerate(streams.sums[2::2]):
                left[i].append(x)
            left[count].append(host_copy(model.logits(hidden)).double())
            if model.mtp is not None and len(left) > count + 1:
                ids = scenario.ids(s, ahead=1).to(device)
                drafted = model.mtp(ids, hidden, step, caches[count])
                left[count + 1].append(host_copy(model.mtp_logits(drafted)).double())
    for i, name in enumerate(sweep.names):
        judged = judge_free(
            torch.cat(left[i]), sweep.plain_left[i], sweep.exact_left[i], by_step(scenario)
        )
        if judged.findings:
            return name, judged
    return None
