"""`glm-portable verify faults`: whether the suite notices what is wrong, and only that."""

import sys
from typing import Any

import click

from glm_portable.errors import UsageError
from glm_portable.options import option
from glm_portable.verify import report
from glm_portable.verify.results import ENVIRONMENT


@click.command()
@option("--backend", default="cpu", help="What the faults are put into: cpu or reference.")
@option("--level", type=click.Choice(["ops", "model", "all"]), default="all",
        help="Look for them op by op, in the pocket model, or both.")  # fmt: skip
@option("--only", metavar="NAME", help="Faults with this in their name.")
@option(
    "--clean",
    type=click.IntRange(0),
    default=0,
    metavar="N",
    help="Run the checks N times without a fault too, each time on inputs of its own.",
)
@option("--seed", type=click.IntRange(0), default=0, help="Of the inputs.")  # fmt: skip
@option("--list", "listing", is_flag=True, help="Print the faults, and run nothing.")
@report.options
def faults(**options: Any) -> None:
    """Put faults into a backend, one after the other, and see whether the suite notices each.

    Prints a table, and how many were noticed of those that must be. Exit code 1 if one was not,
    or if anything was noticed where there was no fault.
    """
    from glm_portable.verify.faults.run import run

    try:
        sys.exit(run(**options))
    except UsageError as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(ENVIRONMENT)
