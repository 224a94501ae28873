"""python -m glm_portable.virtual.codegen: the tables of docs/kernels.md, and a gate for CI."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.progress import Progress

from glm_portable.errors import UsageError
from glm_portable.virtual.chips import CHIPS, chip
from glm_portable.virtual.compiler import settle

if TYPE_CHECKING:
    from glm_portable.virtual.codegen.measure import Result


@click.command()
@click.option("--target", multiple=True, metavar="CHIP", help=f"One of {', '.join(CHIPS)}; all.")
@click.option("--kernel", default="", metavar="TEXT", help="Only kernels with this in their name.")
@click.option("--quick", is_flag=True, help="One case of each kernel, type and height of a tile.")
@click.option("--markdown", is_flag=True, help="Print the tables in GitHub's markdown.")
@click.option(
    "--into",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Put the tables into this document, between the lines that mark their place.",
)
@click.option("--processes", default=2, show_default=True, type=click.IntRange(1))  # fmt: skip
def main(
    target: tuple[str, ...],
    kernel: str,
    quick: bool,
    markdown: bool,
    into: Path | None,
    processes: int,
) -> None:
    """Compile every kernel for every chip, print what became of it, and exit 1 on a finding."""
    try:
        if into and (target or kernel or quick):
            raise UsageError("--into takes the tables of a whole run: leave the others out.")
        results = run(target or tuple(CHIPS), kernel, quick, processes)
        show(results, markdown, into)
    except UsageError as error:
        raise click.UsageError(str(error)) from error
    found = [sentence for result in results for sentence in result.findings]
    for sentence in found:
        click.echo(f"finding: {sentence}", err=True)
    click.echo(f"{len(results)} kernels compiled, {len(found)} findings.", err=True)
    sys.exit(1 if found else 0)


def run(targets: tuple[str, ...], kernel: str, quick: bool, processes: int) -> list["Result"]:
    """Compile, with a bar on stderr."""
    settle()
    from glm_portable.virtual.codegen.measure import measure  # after the environment is settled

    archs = [chip(name).name for name in targets]
    results = []
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("compiling", total=None)
        for result in measure(archs, kernel, processes, quick):
            results.append(result)
            progress.advance(task)
    if not results:
        raise UsageError(f"no kernel's name contains {kernel!r}.")
    return results


def show(results: list["Result"], as_markdown: bool, into: Path | None) -> None:
    """The tables, to stdout or into a document."""
    from glm_portable.virtual.codegen import report

    if into:
        text = report.spliced(into.read_text(encoding="utf-8"), report.document(results))
        into.write_text(text, encoding="utf-8")
    elif as_markdown:
        print(report.document(results), end="")
    else:
        out = Console(highlight=False, width=None if sys.stdout.isatty() else 220)
        for section in report.sections(results):
            out.print(report.terminal(section))
        for sentence in (*report.summary(results), *report.remarks(results)):
            print(sentence)


if __name__ == "__main__":
    main(prog_name="python -m glm_portable.virtual.codegen")
