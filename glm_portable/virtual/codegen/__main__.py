"""python -m glm_portable.virtual.codegen: the table of docs/kernels.md, and a gate for CI."""

import sys

import click
from rich.console import Console
from rich.progress import Progress

from glm_portable.errors import UsageError
from glm_portable.virtual.chips import CHIPS
from glm_portable.virtual.compiler import settle


@click.command()
@click.option("--target", multiple=True, metavar="CHIP", help=f"One of {', '.join(CHIPS)}; all.")
@click.option("--kernel", default="", metavar="TEXT", help="Only kernels with this in their name.")
@click.option("--markdown", is_flag=True, help="Print the tables for docs/kernels.md.")
@click.option("--processes", default=2, show_default=True, type=click.IntRange(1))
def main(target: tuple[str, ...], kernel: str, markdown: bool, processes: int) -> None:
    """Compile every kernel for every chip, print what became of it, and exit 1 on a finding."""
    try:
        found = run(target or tuple(CHIPS), kernel, markdown, processes)
    except UsageError as error:
        raise click.UsageError(str(error)) from error
    sys.exit(1 if found else 0)


def run(targets: tuple[str, ...], kernel: str, as_markdown: bool, processes: int) -> list[str]:
    """Print the tables to stdout and the findings to stderr, and return these."""
    settle()
    from glm_portable.virtual.chips import chip
    from glm_portable.virtual.codegen import report  # after the environment is settled
    from glm_portable.virtual.codegen.measure import Result, measure

    archs = [chip(name).name for name in targets]
    errors = Console(stderr=True, highlight=False, soft_wrap=True)
    results: list[Result] = []
    with Progress(console=errors, transient=True) as progress:
        task = progress.add_task("compiling", total=None)
        for result in measure(archs, kernel, processes):
            results.append(result)
            progress.advance(task)
    if not results:
        raise UsageError(f"no kernel's name contains {kernel!r}.")
    out = Console(highlight=False, width=None if sys.stdout.isatty() else 220)
    for section in report.sections(results):
        if as_markdown:
            print(report.markdown(section))
        else:
            out.print(report.terminal(section))
    for sentence in report.remarks(results):
        print(f"- {sentence}" if as_markdown else sentence)
    found = [sentence for result in results for sentence in result.findings]
    for sentence in found:
        errors.print(f"finding: {sentence}", markup=False)
    errors.print(f"{len(results)} kernels compiled, {len(found)} findings.")
    return found


if __name__ == "__main__":
    main(prog_name="python -m glm_portable.virtual.codegen")
