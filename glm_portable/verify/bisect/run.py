"""The bodies of `verify bisect` and `verify replay`."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import click
import torch
from rich.console import Console
from rich.text import Text

from glm_portable import ops
from glm_portable.errors import UsageError
from glm_portable.ops import Ops
from glm_portable.verify.bisect.reproducer import folder_name, machine, save
from glm_portable.verify.bisect.reproducer import replay as replay_folder
from glm_portable.verify.bisect.scenario import Scenario, usual_tokens
from glm_portable.verify.bisect.search import Bisection, Fault
from glm_portable.verify.bisect.show import about_both, checks, parts_table, say, then_and_now
from glm_portable.verify.bisect.sweep import Machine, Sweep
from glm_portable.verify.report import Outputs, write
from glm_portable.verify.results import FAILED, PASSED, Report
from glm_portable.verify.subject import Subject, opened

DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}
WHOLE_BYTES = 4e9
"""Models up to here are run whole at the end, unless that was settled."""


def run_bisect(
    a: str,
    b: str,
    *,
    outputs: Outputs,
    model: str | None,
    small: str | None,
    kind: str,
    dtype: str,
    prefill: int,
    page_size: int | None,
    seed: int,
    every_op: bool,
    quick: bool,
    whole: bool | None,
    out: Path | None,
) -> int:
    """Print what is found; returns the exit code. Raises UsageError."""
    machines = {"a": machine(a), "b": machine(b)}
    labels = {"a": a, "b": b if a != b else f"{b} (the second)"}
    with opened(model, small, kind, seed) as subject:
        chosen = DTYPES.get(subject.config.dtype if dtype == "auto" else dtype, torch.bfloat16)
        ids = subject.prompt(usual_tokens(prefill))
        scenario = Scenario.usual(ids, prefill, page_size or machines["b"].page_size)
        sweep = make_sweep(subject, scenario, chosen, machines, labels)
        if whole is None:
            whole = sweep.b.weights.loaded_bytes(None) <= WHOLE_BYTES
        outputs.console.print(Text(_title(subject, scenario, labels)))
        begin = time.monotonic()
        bisection = Bisection(sweep, every_op, quick, whole)
        outputs.console.print(parts_table(outputs.console, bisection))
        seconds = time.monotonic() - begin
    folder = out or Path(f"bisect-{a}-{b}")
    folders = save_all(bisection.faults, folder, labels, machines, subject.name)
    say(outputs.console, bisection, labels, folders, seconds)
    said = {"model": subject.name, **about_both(labels, machines)}
    found = Report(f"verify bisect {a} {b}", said, list(checks(bisection, labels, folders)))
    try:
        write(found, json=outputs.json, junit=outputs.junit, html=outputs.html, badge=outputs.badge)
    except OSError as error:
        raise UsageError(f"the report cannot be written ({error}).") from None
    return FAILED if bisection.faults else PASSED


def make_sweep(
    subject: Subject,
    scenario: Scenario,
    dtype: torch.dtype,
    machines: Mapping[str, Ops],
    labels: Mapping[str, str],
) -> Sweep:
    """Both backends, and the reference in their type and in float64, on one checkpoint."""
    reference = ops.load("reference")

    def on(label: str, backend: Ops, dtype: torch.dtype) -> Machine:
        return Machine(label, backend, subject.weights(dtype, backend.device))

    return Sweep(
        on(labels["a"], machines["a"], dtype),
        on(labels["b"], machines["b"], dtype),
        on("plain PyTorch", reference, dtype),
        on("float64", reference, torch.float64),
        subject.config,
        scenario,
    )


def _title(subject: Subject, scenario: Scenario, labels: Mapping[str, str]) -> str:
    tokens = sum(n for step in scenario.steps for _, _, n in step)
    return (
        f"{subject.name} in {subject.kind}, A = {labels['a']}, B = {labels['b']}: {tokens} tokens "
        f"in {len(scenario.steps)} steps, pages of {scenario.page_size}"
    )


def save_all(
    faults: Sequence[Fault],
    out: Path,
    labels: Mapping[str, str],
    machines: Mapping[str, Ops],
    model: str,
) -> dict[int, tuple[Path, bool]]:
    """A reproducer for every fault that a call shows: its folder, and whether it fails alone."""
    folders: dict[int, tuple[Path, bool]] = {}
    for i, fault in enumerate(faults):
        if fault.evidence is not None:
            path = out / folder_name(fault, [p.name for p, _ in folders.values()])
            try:
                folders[i] = path, save(path, fault, labels, machines, model)
            except (OSError, UsageError) as error:  # what was found is worth more than its folder
                click.echo(f"Error: a reproducer cannot be written ({error}).", err=True)
    return folders


def run_replay(path: Path, backend: str | None, chip: str | None) -> int:
    """Print then and now; returns the exit code. Raises UsageError."""
    try:
        found = replay_folder(path, backend, chip)
    except (KeyError, TypeError) as error:
        raise UsageError(f"{path} is damaged ({type(error).__name__}: {error}).") from None
    console = Console(highlight=False)
    console.print(then_and_now(found))
    said = found.stored.about
    for finding in found.now.findings:
        console.print(Text(f"  {finding}"))
    if found.now.findings:
        console.print(Text(f"STILL WRONG on {found.backend}: {said['where']}", style="bold red"))
        return FAILED
    console.print(Text(f"right on {found.backend}: {said['where']}", style="bold green"))
    if found.backend == said["backends"][said["wrong"]] and not said["alone"]["findings"]:
        console.print(Text("It was right alone then, too: in the model, what ran before matters."))
    return PASSED
