"""Two backends through a model part by part, each on the input that the first one's part had.

Beside the two run plain PyTorch in the same type and float64. Each of them also runs on from what
it computed itself, which is how the model would be used: so it shows from where on a difference is
more than rounding. The memory is that of one part of one of them at a time.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from glm_portable.checkpoint import Checkpoint
from glm_portable.config import ModelConfig
from glm_portable.model import MoE
from glm_portable.ops import Ops
from glm_portable.verify.bisect.part_rule import Judged, by_step, judge_free, judge_part
from glm_portable.verify.bisect.parts import Flow, Opener, Part, embedding, open_part, part_names
from glm_portable.verify.bisect.scenario import Scenario
from glm_portable.verify.bisect.steered import Steered
from glm_portable.verify.routing import flips
from glm_portable.verify.watch import Routing


@dataclass(frozen=True)
class Machine:
    """A model on a backend. weights: in its memory. open_part: loads one part of it."""

    label: str
    ops: Ops
    weights: Checkpoint
    open_part: Opener = open_part

    @property
    def dtype(self) -> torch.dtype:
        return self.weights.dtype


@dataclass(frozen=True)
class Side:
    """What one of the two did in one part. taught: on the given input. free: left to itself."""

    taught: Judged
    free: Judged


@dataclass(frozen=True)
class PartSeen:
    i: int
    name: str
    a: Side
    b: Side


@dataclass
class Sweep:
    """given: of every part that was run, the input of A's, each step's."""

    a: Machine
    b: Machine
    plain: Machine
    exact: Machine
    config: ModelConfig
    scenario: Scenario
    given: list[list[Flow]] = field(default_factory=list)
    found: list[list[Flow]] = field(default_factory=list)
    choices: list[list[Tensor]] = field(default_factory=list)
    exact_left: list[Tensor] = field(default_factory=list)
    plain_left: list[Tensor] = field(default_factory=list)

    @property
    def names(self) -> list[str]:
        return part_names(self.config, has_mtp(self.config, self.exact.weights))

    def run(self) -> Iterator[PartSeen]:
        """One part after the other."""
        begin = first_flows(self.scenario, self.config, self.exact.weights, self.a.dtype)
        flows = {who: begin for who in ("a", "b", "plain", "exact")}
        with torch.inference_mode():
            for i, name in enumerate(self.names):
                yield self._part(i, name, flows)

    def _part(self, i: int, name: str, flows: dict[str, list[Flow]]) -> PartSeen:
        """`flows` are those of the models left to themselves; of A there is no other."""
        given = flows["a"]
        self.given.append(given)
        added: dict[str, Tensor] = {}
        left: dict[str, Tensor] = {}
        routings: dict[str, list[Routing]] = {}
        choices: list[Tensor] = []
        for who in ("a", "b", "plain", "exact"):
            machine: Machine = getattr(self, who)
            steered = Steered(machine.ops)
            part = machine.open_part(i, self.config, cast(Ops, steered), machine.weights)
            found = self._steps(machine, part, steered, given, choices)
            added[who] = torch.cat([part.added(g, f) for g, f in zip(given, found, strict=True)])
            routings[who] = steered.routings[:]
            if who == "a":
                choices = [routing.experts_TK for routing in routings["a"]]
                self.found.append(found)
                self.choices.append(choices)
            else:
                found = self._steps(machine, part, steered, flows[who], choices)
            flows[who] = found
            left[who] = torch.cat([part.left(flow) for flow in found])
        self.exact_left.append(left["exact"])
        self.plain_left.append(left["plain"])
        sides = [
            Side(
                self._taught(added, routings, who, part.moe),
                judge_free(left[who], left["plain"], left["exact"], by_step(self.scenario)),
            )
            for who in ("a", "b")
        ]
        return PartSeen(i, name, *sides)

    def _steps(
        self,
        machine: Machine,
        part: Part,
        steered: Steered,
        given: Sequence[Flow],
        choices: Sequence[Tensor],
    ) -> list[Flow]:
        steered.steer(choices)
        return run_steps(machine, part, self.config, self.scenario, given)

    def _taught(
        self,
        added: dict[str, Tensor],
        routings: dict[str, list[Routing]],
        who: str,
        moe: MoE | None,
    ) -> Judged:
        """moe: the exact one."""
        tensors = [added[w] for w in (who, "plain", "exact")]
        rows = judge_part(tensors[0], tensors[1], tensors[2], by_step(self.scenario))
        if moe is None:
            return rows
        actual, plain, exact = (joined(routings[w]) for w in (who, "plain", "exact"))
        seen = flips(actual, plain, exact, moe)
        flipped, wrong = (int(t.sum()) for t in (seen.flipped_T, seen.unexplained_T))
        found = rows.findings
        if wrong:
            found += (f"{wrong} of {len(seen.flipped_T)} tokens go to other experts unexplained",)
        return Judged(found, rows.worst, rows.plain, flipped - wrong, wrong)


def run_steps(
    machine: Machine,
    part: Part,
    config: ModelConfig,
    scenario: Scenario,
    given: Sequence[Flow],
    on_step: Callable[[int], None] = lambda step: None,
) -> list[Flow]:
    """A part through all steps with fresh pages; results on the host. on_step: before each."""
    device, dtype = machine.ops.device, machine.dtype
    cache = scenario.caches(config, dtype, device)
    found = []
    for s, flow in enumerate(given):
        on_step(s)
        here = tuple(x.to(device, dtype) for x in flow)
        next_ids = scenario.ids(s, ahead=1).to(device)
        out = part.run(here, next_ids, scenario.build(s, device), cache)
        found.append(tuple(x.detach().to("cpu", copy=True) for x in out))
    return found


def first_flows(
    scenario: Scenario, config: ModelConfig, weights: Checkpoint, dtype: torch.dtype
) -> list[Flow]:
    """The embedded tokens of each step."""
    table = embedding(config, weights)
    ids = [scenario.ids(s) for s in range(len(scenario.steps))]
    return [(F.embedding(i.to(table.device), table).to("cpu", dtype),) for i in ids]


def joined(routings: Sequence[Routing]) -> Routing:
    return Routing(
        torch.cat([r.x_TD for r in routings]), torch.cat([r.experts_TK for r in routings])
    )


def has_mtp(config: ModelConfig, weights: Checkpoint) -> bool:
    """As the model decides it: tools that re-save a checkpoint drop the layer's tensors."""
    prefix = f"model.layers.{config.num_hidden_layers}"
    return config.num_nextn_predict_layers > 0 and weights.has(f"{prefix}.eh_proj.weight")
