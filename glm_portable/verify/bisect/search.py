"""Where two backends part: the first part of the model, and in it the first op, wrong alone.

First part by part (`sweep`), then, in the first part that is beyond the rule, op by op: the second
backend's ops get the inputs that the first one's had (`taught`). Both backends are judged, as
either may be the wrong one. The parts before it are opened too, as ops are judged more sharply than
what they add up to. If nothing is found, the models run whole, as they are used.

What can be wrong is one of these:

    op      an op gives a wrong result of right inputs
    codes   an op is wrong on what another op put beside its numbers (FP8 codes for this product)
    wiring  the model's code gives an op something else, though every op gave the right thing
    state   every op is right by itself, and the part or the model is not: what is kept between ops
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, cast

import torch

from glm_portable.ops import Ops
from glm_portable.verify.bisect.op_rule import Yardsticks, judge_call
from glm_portable.verify.bisect.record import Record, Recorded
from glm_portable.verify.bisect.sweep import PartSeen, Sweep, run_steps
from glm_portable.verify.bisect.taught import Detour, Heard, Taught, differing
from glm_portable.verify.bisect.whole import run_whole
from glm_portable.verify.call import Call, Tensors
from glm_portable.verify.suite.judge import Verdict
from glm_portable.verify.watch import Watched

Kind = Literal["op", "codes", "wiring", "state"]


@dataclass(frozen=True)
class Evidence:
    """The call that shows a wrong op: what each backend gave, and the yardsticks."""

    call: Call
    dtype: torch.dtype
    query_ends: tuple[int, ...]
    results: dict[str, Tensors]
    judged: Verdict
    kernels: dict[str, int]


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong. who: "a" or "b". part, place: where, in words; op: of `Ops`, or "".

    steps: of the scenario in which it shows. findings: what is wrong there, one sentence each.
    evidence: of the first step in which it shows.
    """

    kind: Kind
    who: str
    part: str
    place: str
    op: str
    steps: tuple[str, ...]
    findings: tuple[str, ...]
    evidence: Evidence | None = None


@dataclass
class Bisection:
    """every_op: open all parts. quick: open none but the first that is beyond the rule. whole: run
    the models whole if nothing was found.

    parts: what the sweep has seen so far. opened: parts whose ops were judged, and how many calls.
    faults: in the order of the model.
    """

    sweep: Sweep
    every_op: bool = False
    quick: bool = False
    whole: bool = True
    parts: list[PartSeen] = field(default_factory=list)
    opened: dict[str, int] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)

    def run(self) -> Iterator[PartSeen]:
        """Every part as it is seen; afterwards `faults` is complete."""
        for seen in self.sweep.run():
            self.parts.append(seen)
            if self.every_op or (not self.faults and self._is_wrong(seen)):
                self._open(seen)
            yield seen
            if self.faults and self.first_free and not self.every_op:
                break
        if not self.quick:
            self._open_before()
        if not self.faults:
            self._judge_free()
        if not self.faults and self.whole:
            self._run_whole()

    @property
    def first_free(self) -> PartSeen | None:
        """The first part behind which one of the models left to itself is beyond the rule."""
        wrong = (p for p in self.parts if p.a.free.findings or p.b.free.findings)
        return next(wrong, None)

    def _open_before(self) -> None:
        """The first wrong op may be in a part that looked right: ops are judged more sharply."""
        known = [fault.part for fault in self.faults]
        for seen in self.parts:
            if seen.name in known:
                return
            if seen.name not in self.opened:
                found, self.faults = self.faults, []
                self._open(seen)
                self.faults += found
                if len(self.faults) > len(found):
                    return

    def _is_wrong(self, seen: PartSeen) -> bool:
        return bool(seen.a.taught.findings or seen.b.taught.findings)

    def _open(self, seen: PartSeen) -> None:
        """Judge the ops of a part; if they are right and the part is not, say so."""
        before = len(self.faults)
        with torch.inference_mode():
            self.faults += ops_of(self.sweep, seen, self.opened)
        if len(self.faults) > before:
            return
        for who, side in (("a", seen.a), ("b", seen.b)):
            if side.taught.findings:
                self.faults.append(Fault("state", who, seen.name, "", "", (), side.taught.findings))

    def _judge_free(self) -> None:
        for who in "ab":
            for seen in self.parts:
                side = seen.a if who == "a" else seen.b
                if side.free.findings:
                    found = side.free.findings
                    self.faults.append(Fault("state", who, f"up to {seen.name}", "", "", (), found))
                    break

    def _run_whole(self) -> None:
        for who, machine in (("a", self.sweep.a), ("b", self.sweep.b)):
            if (found := run_whole(self.sweep, machine)) is not None:
                name, judged = found
                self.faults.append(
                    Fault("state", who, f"whole model up to {name}", "", "", (), judged.findings)
                )


@dataclass(frozen=True)
class _Sight:
    """One finding of one call, before those of all steps are put together."""

    nth: int
    kind: Kind
    who: str
    step: int
    findings: tuple[str, ...]
    evidence: Evidence | None = None


def ops_of(sweep: Sweep, seen: PartSeen, opened: dict[str, int]) -> list[Fault]:
    """What is wrong with the ops of one part, and with what lies between them."""
    records, places = _record(sweep, seen.i)
    opened[seen.name] = len(records)
    heard, sights = _teach(sweep, seen.i, records)
    for n, record in enumerate(records):
        sights += _judge_call(sweep, record, heard[n] if n < len(heard) else None)
    sights.sort(key=lambda sight: (sight.nth, sight.step))
    grouped: dict[tuple[int, Kind, str], list[_Sight]] = {}
    for sight in sights:
        grouped.setdefault((sight.nth, sight.kind, sight.who), []).append(sight)
    return [_fault(sweep, seen, places, group) for group in grouped.values()]


def _record(sweep: Sweep, i: int) -> tuple[list[Record], Sequence[tuple[str, str]]]:
    """All calls of a part on the first backend, and the places they are made from."""
    recorded = Recorded(Watched(sweep.a.ops))
    part = sweep.a.open_part(i, sweep.config, cast(Ops, recorded), sweep.a.weights)
    run_steps(sweep.a, part, sweep.config, sweep.scenario, sweep.given[i], recorded.start)
    return recorded.records, part.places


def _teach(sweep: Sweep, i: int, records: Sequence[Record]) -> tuple[list[Heard], list[_Sight]]:
    """The calls on the second backend, and where its model's code went astray."""
    taught = Taught(Watched(sweep.b.ops))
    part = sweep.b.open_part(i, sweep.config, cast(Ops, taught), sweep.b.weights)
    steps = range(len(sweep.scenario.steps))
    scripts = {s: [record for record in records if record.step == s] for s in steps}
    sights = []
    try:
        found = run_steps(
            sweep.b, part, sweep.config, sweep.scenario, sweep.given[i],
            lambda s: taught.start(scripts[s]),
        )  # fmt: skip
    except Detour as detour:
        at = records[len(taught.heard)] if len(taught.heard) < len(records) else records[-1]
        return taught.heard, [_Sight(at.nth, "wiring", "b", at.step, (str(detour),))]
    for heard in taught.heard:
        if heard.astray:
            record = heard.record
            sights.append(_Sight(record.nth, "wiring", "b", record.step, tuple(heard.astray)))
    for s, (mine, theirs) in enumerate(zip(found, sweep.found[i], strict=True)):
        if off := differing(mine, theirs):
            sights.append(_Sight(len(scripts[s]), "wiring", "b", s, (off,)))
    return taught.heard, sights


def _judge_call(sweep: Sweep, record: Record, heard: Heard | None) -> Iterator[_Sight]:
    """Both backends' results of one call; and of the second's on its own codes, if it has any."""
    dtype = sweep.a.dtype
    step = sweep.scenario.build(record.step, torch.device("cpu"))

    def sight(
        kind: Kind, who: str, call: Call, mine: Tensors, kernels: Mapping[str, int]
    ) -> _Sight:
        judged = judge_call(call, mine, sticks, step.query_ends)
        results = {"plain": sticks.plain, "exact": sticks.exact, **both, who: mine}
        evidence = Evidence(call, dtype, step.query_ends, results, judged, dict(kernels))
        return _Sight(record.nth, kind, who, record.step, judged.findings, evidence)

    sticks, both = Yardsticks.of(record.call, dtype), {"a": record.results}
    found = []
    if heard is not None:
        both["b"] = heard.results
        found.append(sight("op", "b", record.call, heard.results, heard.kernels))
    found.append(sight("op", "a", record.call, record.results, record.kernels))
    if heard is not None and heard.coded is not None:
        call, results = heard.coded
        sticks, both = Yardsticks.of(call, dtype), {}
        found.append(sight("codes", "b", call, results, heard.kernels))
    return (one for one in found if one.findings)


def _fault(
    sweep: Sweep, seen: PartSeen, places: Sequence[tuple[str, str]], group: Sequence[_Sight]
) -> Fault:
    """One call's findings in all the steps that show them; the first one's in words."""
    first = group[0]
    evidence, steps = first.evidence, tuple(sweep.scenario.names[s.step] for s in group)
    ops = [(op, words) for op, words in places]
    before = ops[first.nth - 1][1] if first.nth else "the part's input"
    op, place = ops[first.nth] if first.nth < len(ops) else ("", "the part's output")
    if first.kind == "wiring":
        op, place = "", f"between {before} and {place}"
    elif first.kind == "codes":
        place = f"{place}, on the codes that came with its input"
    return Fault(first.kind, first.who, seen.name, place, op, steps, first.findings, evidence)
