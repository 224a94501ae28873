"""The bodies of `glm-portable verify model` and `verify golden`."""

import platform
from collections.abc import Iterable
from importlib import metadata
from typing import Any

import click
import torch

from glm_portable import ops
from glm_portable.ops import Ops
from glm_portable.verify.model import Options, checks
from glm_portable.verify.results import Check, Report
from glm_portable.verify.subject import opened
from glm_portable.virtual import connect

SHOWN = ("error", "allowed", "slope", "flips_explained", "flips_unexplained", "kl_mean", "kl_max")


def run_model(
    model: str | None,
    *,
    backend: str,
    virtual: str | None,
    small: str | None,
    kind: str,
    prefill: int,
    decode: int,
    seed: int,
) -> int:
    """Print every verdict as it comes; returns the exit code."""
    with opened(model, small, kind, seed) as subject:
        machine = ops.load(backend) if virtual is None else connect(backend, virtual)
        options = Options(prefill, decode)
        found = list(_shown(checks(machine, subject, options)))
        about = {"model": subject.name, "format": kind, **_machine(machine)}
        return finish(Report("verify model", about, found))


def _machine(machine: Ops) -> dict[str, str]:
    return {
        "backend": machine.name,
        "device": str(machine.device),
        "glm-portable": metadata.version("glm-portable"),
        "torch": torch.__version__,
        "host": platform.machine(),
    }


def _shown(found: Iterable[Check]) -> Iterable[Check]:
    for check in found:
        numbers = [f"{k} {check.measures[k]:.3g}" for k in SHOWN if k in check.measures]
        click.echo(f"{check.status:12}{check.subject}, {check.name}: {', '.join(numbers)}")
        for finding in check.findings:
            click.echo(f"{'':12}{finding}")
        yield check


def finish(report: Report) -> int:
    about: dict[str, Any] = dict(report.about)
    click.echo(", ".join(f"{k} {v}" for k, v in about.items()))
    fails = sum(bool(check.findings) for check in report.checks)
    click.echo(f"{len(report.checks)} checks, {fails} failed.")
    return report.exit_code
