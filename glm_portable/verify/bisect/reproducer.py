"""A wrong call in a folder, and running it again, alone: on this backend, another, or a later one.

The folder is a stored call (`stored_call`) with the results of both backends, the yardsticks and,
under "about", what was known when it was written.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from glm_portable import ops
from glm_portable.errors import UsageError
from glm_portable.ops import Ops
from glm_portable.verify.bisect.op_rule import Yardsticks, judge_call
from glm_portable.verify.bisect.search import Evidence, Fault
from glm_portable.verify.call import perform
from glm_portable.verify.report.environment import about
from glm_portable.verify.stored_call import StoredCall, read, write
from glm_portable.verify.suite.judge import Verdict
from glm_portable.virtual import connect

KIND = "reproducer"


@dataclass(frozen=True)
class Replayed:
    """backend: that ran now. stored: the folder. now: how the backend is judged today."""

    backend: str
    stored: StoredCall
    now: Verdict


def machine(text: str) -> Ops:
    """A backend by name; NAME@CHIP is the one on a simulated chip. Raises UsageError."""
    name, at, chip = text.partition("@")
    if not at:
        return ops.load(name)
    return connect(name, chip)


def save(
    folder: Path, fault: Fault, labels: Mapping[str, str], machines: Mapping[str, Ops], model: str
) -> bool:
    """Write the fault's call; returns whether it is wrong alone, too.

    labels, machines: of "a" and "b". What is wrong in the model alone depends on what ran before.
    """
    evidence = fault.evidence
    assert evidence is not None
    alone = run_alone(evidence, machines[fault.who])
    stored = {
        "kind": KIND,
        "model": model,
        "where": f"{fault.part}: {fault.place}",
        "steps": list(fault.steps),
        "wrong": fault.who,
        "backends": dict(labels),
        "machines": {who: about(backend) for who, backend in machines.items()},
        "query_ends": list(evidence.query_ends),
        "findings": list(fault.findings),
        "numbers": _numbers(evidence.judged),
        "kernels": evidence.kernels,
        "alone": {"findings": list(alone.findings), "numbers": _numbers(alone)},
    }
    write(folder, StoredCall(evidence.call, evidence.dtype, evidence.results, stored))
    return bool(alone.findings)


def replay(folder: Path, backend: str | None = None, chip: str | None = None) -> Replayed:
    """Run a stored call on a backend, by default the one that was wrong. Raises UsageError."""
    stored = read(folder)
    said = stored.about
    if said.get("kind") != KIND or not {"plain", "exact"} <= stored.results.keys():
        raise UsageError(
            f"{folder} holds a stored call but is no reproducer of `verify bisect`; give it one."
        )
    name = backend or str(said["backends"][said["wrong"]])
    if chip is not None:
        name = f"{name.partition('@')[0]}@{chip}"
    sticks = Yardsticks(stored.results["plain"], stored.results["exact"])
    with torch.inference_mode():
        found = perform(stored.call, machine(name), stored.dtype)
    return Replayed(name, stored, judge_call(stored.call, found, sticks, said["query_ends"]))


def run_alone(evidence: Evidence, backend: Ops) -> Verdict:
    """The call with its weights packed anew, and nothing before it."""
    sticks = Yardsticks(evidence.results["plain"], evidence.results["exact"])
    with torch.inference_mode():
        found = perform(evidence.call, backend, evidence.dtype)
    return judge_call(evidence.call, found, sticks, evidence.query_ends)


def _numbers(judged: Verdict) -> dict[str, float | str]:
    """JSON has no word for NaN and infinity."""
    return {n: v if math.isfinite(v) else str(v) for n, v in judged.measures.items()}


def folder_name(fault: Fault, taken: Sequence[str]) -> str:
    """Such as "layer-3-attend-b", with a number behind it if that is taken."""
    name = f"{fault.part} {fault.op} {fault.who}".replace("(", "").replace(")", "")
    name = name.replace(" ", "-").lower()
    count = sum(other.startswith(name) for other in taken)
    return name if not count else f"{name}-{count + 1}"
