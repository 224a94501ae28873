"""`--json`, `--junit`, `--html`, `--badge` and `--verbose` of every `verify` command, and
`glm-portable verify report`, which makes the same from a stored report.

    @click.command()
    @report.options
    def ops(..., outputs: Outputs) -> None:
        checks = list(report.printed(run(...), outputs.console, verbose=outputs.verbose))
        sys.exit(report.finish(Report("...", report.about(backend), checks), outputs))
"""

import functools
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import click
from rich.console import Console

from glm_portable.errors import UsageError
from glm_portable.verify.report import comparison
from glm_portable.verify.report.files import write
from glm_portable.verify.report.stored import read
from glm_portable.verify.report.table import printed, show
from glm_portable.verify.results import ENVIRONMENT, Report

F = TypeVar("F", bound=Callable[..., Any])
FORMS = {
    "json": "Write the report as JSON, for `verify report` and other programs.",
    "junit": "Write it as JUnit XML, for Jenkins and GitLab.",
    "html": "Write it as one HTML page with plots.",
    "badge": "Write the verdict for a README: FILE.svg is a picture, any other name Markdown.",
}


@dataclass(frozen=True)
class Outputs:
    """Where a report goes, besides to the terminal."""

    json: Path | None = None
    junit: Path | None = None
    html: Path | None = None
    badge: Path | None = None
    verbose: bool = False
    console: Console = field(default_factory=lambda: Console(highlight=False))


def _writable(_: click.Context, option: click.Parameter, path: Path | None) -> Path | None:
    """Refuses a folder that is not there before a long run, not after it."""
    if path is not None and not os.access(path.absolute().parent, os.W_OK):
        raise click.BadParameter(f"no file can be written to {path.absolute().parent}.")
    return path


def options(command: F) -> F:
    """Adds the options; the command gets them as one argument, `outputs`."""

    @functools.wraps(command)
    def wrapped(*args: Any, verbose: bool, **kwargs: Any) -> Any:
        files = {form: kwargs.pop(f"{form}_file") for form in FORMS}
        return command(*args, outputs=Outputs(**files, verbose=verbose), **kwargs)

    decorated: Any = wrapped
    flag = click.option("--verbose", "-v", is_flag=True, help="Print every check as it is made.")
    decorated = flag(decorated)
    for form, text in reversed(FORMS.items()):
        decorated = click.option(
            f"--{form}",
            f"{form}_file",
            metavar="FILE",
            type=click.Path(path_type=Path, dir_okay=False, writable=True),
            callback=_writable,
            help=text,
        )(decorated)
    return decorated  # type: ignore[no-any-return]  # what click's decorators return is F again


def finish(report: Report, outputs: Outputs) -> int:
    """Print the report and write its files; returns the exit code."""
    show(report, outputs.console)
    try:
        write(
            report,
            json=outputs.json,
            junit=outputs.junit,
            html=outputs.html,
            badge=outputs.badge,
        )
    except OSError as error:
        click.echo(f"Error: the report cannot be written ({error}).", err=True)
        return ENVIRONMENT
    return report.exit_code


@click.command("report")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@options
def main(file: Path, outputs: Outputs) -> None:
    """Show a report that was stored with --json, and write it in other forms.

    The exit code is the report's: 0 passed, 1 failed, 2 unsupported; 3 if FILE is not there.
    """
    report = _stored(file)
    for _ in printed(report.checks, outputs.console, verbose=True) if outputs.verbose else ():
        continue
    sys.exit(finish(report, outputs))


@click.command("table")
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path, dir_okay=False))
def table(files: tuple[Path, ...]) -> None:
    """Print stored reports side by side, as a Markdown table."""
    click.echo(comparison.table(_stored(file) for file in files))


def _stored(file: Path) -> Report:
    try:
        return read(file)
    except UsageError as error:
        raise click.UsageError(str(error)) from error
    except OSError as error:
        click.echo(f"Error: {file} cannot be read: {error.strerror}.", err=True)
        sys.exit(ENVIRONMENT)
