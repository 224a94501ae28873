"""`glm-portable verify ops` and `glm-portable verify make`: the suite, run or written down."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from glm_portable.errors import UsageError
from glm_portable.options import option, simulate
from glm_portable.verify import report
from glm_portable.verify.report import Outputs
from glm_portable.verify.results import ENVIRONMENT, Check, Report

if TYPE_CHECKING:  # importing torch takes seconds, which --help need not
    from glm_portable.ops import Ops
    from glm_portable.verify.cases import Case

DTYPES = {"bfloat16": "bfloat16", "float32": "float32", "bf16": "bfloat16", "f32": "float32"}
backend_option = option("--backend", default="auto", help="The backend to judge.")
virtual_option = option(
    "--virtual",
    metavar="CHIP",
    callback=simulate,
    help="Simulate gfx942, gfx950, Ascend910_9391 or others.",
)
only = option("--only", metavar="GLOB", help='Cases by "op: name", such as "attend: *".')
seed_option = option("--seed", type=click.IntRange(0, 2**32 - 1), default=0,
                     help="Makes fresh inputs of the same kinds.")  # fmt: skip
deterministic_option = option(
    "--enable-deterministic-inference",
    is_flag=True,
    help="Judge what computes then, whose rows must have the same bits in any company.",
)
full_option = option("--full", is_flag=True, help="With shapes of the real models.")


@click.command()
@backend_option
@virtual_option
@deterministic_option
@only
@option("--dtype", type=click.Choice(list(DTYPES)), default="bfloat16", help="Of activations.")
@seed_option
@full_option
@option("--list", "listing", is_flag=True, help="Print the cases, and run none.")
@option("--support", is_flag=True, help="Say what the backend brings itself, and what it refuses.")
@option("--perf", is_flag=True, help="Time the cases, with the reference beside.")
@report.options
def ops(
    backend: str,
    virtual: str | None,
    enable_deterministic_inference: bool,
    only: str | None,
    dtype: str,
    seed: int,
    full: bool,
    listing: bool,
    support: bool,
    perf: bool,
    outputs: Outputs,
) -> None:
    """Check every op of a backend against the reference, on inputs that models and bugs have.

    A simulated GPU executes one instruction after the other: without --full it gets the small
    cases alone.
    """
    try:
        if listing:
            return _list(chosen(only, full))
        machine = connect(backend, virtual)
        if enable_deterministic_inference:
            from glm_portable.ops import promising

            machine = promising(machine)
        small = only is None and not full and is_slow(virtual)
        cases = chosen(only, full, seed, small)
        again = virtual is None or enable_deterministic_inference
        title, checks = _run(machine, cases, again, dtype, seed, support, perf)
    except UsageError as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(ENVIRONMENT)
    done = list(report.printed(checks, outputs.console, verbose=outputs.verbose))
    about = {**({"simulated": virtual} if virtual else {}), **report.about(machine)}
    about |= {"seed": str(seed), "suite": _digest(cases, seed)}
    sys.exit(report.finish(Report(title, about, done), outputs))


def _digest(cases: list["Case"], seed: int) -> str:
    from glm_portable.verify.cases import digest

    return digest(cases, seed)[:16]


def _run(
    machine: "Ops",
    cases: list["Case"],
    again: bool,
    dtype: str,
    seed: int,
    support: bool,
    perf: bool,
) -> tuple[str, Iterator[Check]]:
    """The report's title, and its checks as they are made."""
    import torch

    from glm_portable.verify.suite.ops import check
    from glm_portable.verify.suite.perf import timed
    from glm_portable.verify.suite.support import supported

    kind = getattr(torch, DTYPES[dtype])
    if support:
        return "What the backend supports", supported(machine, kind)
    if perf:
        return "Times of the ops", timed(machine, cases, seed, kind)
    return f"Ops in {DTYPES[dtype]}", check(machine, cases, seed, kind, again)


def is_slow(virtual: str | None) -> bool:
    """Whether a chip is simulated instruction by instruction."""
    from glm_portable.virtual import GPUS

    return virtual in GPUS


def connect(backend: str, virtual: str | None) -> "Ops":
    """The backend, on silicon or simulated."""
    from glm_portable import ops
    from glm_portable.virtual import connect

    return ops.load(backend) if virtual is None else connect(backend, virtual)


def chosen(only: str | None, full: bool, seed: int = 0, small: bool = False) -> list["Case"]:
    """The cases that options ask for. Raises UsageError if there are none."""
    from fnmatch import fnmatchcase

    from glm_portable.verify.cases import CASES, EVERYTHING, small_enough

    cases = [
        c for c in (EVERYTHING if full else CASES) if only is None or fnmatchcase(str(c), only)
    ]
    if not cases:
        raise UsageError(f"no case is called {only!r}; see `glm-portable verify ops --list`.")
    return [c for c in cases if small_enough(c, seed)] if small else cases


def _list(cases: list["Case"]) -> None:
    from glm_portable.verify.cases import cost

    for case in cases:
        size = "real models" if case.full else f"{cost(case.call()):,}"
        click.echo(f"{str(case):<64}{size:>14}")
    click.echo(f"{len(cases)} cases; the numbers count multiplications.")


@click.command()
@option("--out", type=click.Path(path_type=Path, file_okay=False), required=True,
        help="A folder that is not there yet, or an older suite.")  # fmt: skip
@only
@seed_option
def make(out: Path, only: str | None, seed: int) -> None:
    """Write the suite as files, for those who run it without this program.

    A folder for each case, of safetensors and JSON, with a reader that judges results and needs
    nothing but NumPy and safetensors. The same seed gives the same files, bit for bit.
    """
    from glm_portable.verify.suite.artefact import write

    try:
        index = write(out, chosen(only, full=False), seed, whole=only is None)
    except (UsageError, OSError) as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(ENVIRONMENT)
    click.echo(f"Wrote {len(index['cases'])} cases to {out}, suite {index['suite'][:16]}.")
