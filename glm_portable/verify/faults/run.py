"""The body of `glm-portable verify faults`."""

from collections.abc import Iterator, Mapping, Sequence

import click
import torch

from glm_portable import ops
from glm_portable.ops import Ops
from glm_portable.verify import report
from glm_portable.verify.faults.catalogue import named
from glm_portable.verify.faults.fault import LEVELS, Fault, Level
from glm_portable.verify.faults.model_level import ModelLevel
from glm_portable.verify.faults.ops_level import OpsLevel
from glm_portable.verify.faults.table import heading, row
from glm_portable.verify.faults.trial import Checks, Rate, Trial, alarms, trial
from glm_portable.verify.report import Outputs
from glm_portable.verify.results import FAILED, PASSED, Check, Report, Status


def run(
    *,
    backend: str,
    level: str,
    only: str | None,
    clean: int,
    seed: int,
    listing: bool,
    outputs: Outputs,
) -> int:
    """Print the table and the rates, write the report; returns the exit code."""
    chosen = [one for one in LEVELS if level in (one, "all")]
    faults = [fault for fault in named(only) if fault.levels & set(chosen) or not fault.levels]
    if listing:
        return _list(faults)
    torch.set_num_threads(1)  # the inputs are small: more threads only wait for each other
    machine = ops.load(backend)
    levels = {one: _level(one, machine) for one in chosen}
    trials = list(_tried(faults, levels, seed))
    silent = [check for one in levels for check in _clean(one, levels[one], clean, seed)]
    click.echo()
    for one in levels:
        click.echo(str(Rate.of(trials, one)))
    if clean:
        click.echo(f"{sum(bool(c.findings) for c in silent)} of {len(silent)} clean runs alarm")
    checks = [*map(_check_of, [t for t in trials if t.due]), *silent]
    done = Report("Faults that the suite notices", report.about(machine), checks)
    report.write(
        done, json=outputs.json, junit=outputs.junit, html=outputs.html, badge=outputs.badge
    )
    return FAILED if done.count(Status.FAIL) else PASSED


def _list(faults: Sequence[Fault]) -> int:
    for fault in faults:
        where = ", ".join(level for level in LEVELS if level in fault.levels)
        click.echo(f"{fault.name:36}{fault.op:12}{where:12}{fault.stands_for}")
    click.echo(f"{len(faults)} faults.")
    return PASSED


def _level(level: Level, machine: Ops) -> Checks:
    return OpsLevel(machine) if level == "ops" else ModelLevel(machine)


def _tried(faults: Sequence[Fault], levels: Mapping[Level, Checks], seed: int) -> Iterator[Trial]:
    """Every fault at the levels where it must be noticed; prints the table."""
    click.echo(heading())
    for fault in faults:
        found = {
            level: trial(fault, level, checks, seed)
            for level, checks in levels.items()
            if level in fault.levels
        }
        click.echo(row(fault, found))
        yield from found.values()


def _clean(level: Level, checks: Checks, runs: int, seed: int) -> Iterator[Check]:
    """A check for each honest run, which fails if anything in it did."""
    for one, failed in alarms(checks, range(seed + 1, seed + 1 + runs)):
        findings = tuple(f"{c.subject}, {c.name}: {c.findings[0]}" for c in failed)
        for finding in findings:
            click.echo(f"false alarm from seed {one}: {finding}")
        status = Status.FAIL if findings else Status.PASS
        yield Check("faults", f"{level}, no fault", f"seed {one}", status, findings)


def _check_of(one: Trial) -> Check:
    """A fault that was noticed passes."""
    name = f"{one.fault.name}, {one.level}"
    if not one.killed:
        finding = f"{one.checks} checks did not notice it ({one.fault.stands_for})"
        return Check("faults", one.fault.op, name, Status.FAIL, (finding,), seconds=one.seconds)
    note = f"{one.killed_by}: {one.finding}"
    return Check("faults", one.fault.op, name, Status.PASS, note=note, seconds=one.seconds)
