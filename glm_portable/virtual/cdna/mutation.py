"""python -m glm_portable.virtual.cdna.mutation: how much damage to a program the simulator notices.

One instruction of a compiled kernel is taken out (or reads another register), the rest executed
under a few orders of waves. The simulator should fault, or the result be wrong.
"""

import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from glm_portable.virtual.compiler import settle

if TYPE_CHECKING:
    from glm_portable.virtual.cdna.mutants import Verdict

    Found = dict[tuple[str, str], list[Verdict]]
    """By kernel with chip, and kind."""

ARCHS = ("gfx942", "gfx950")


@click.command()
@click.option("--arch", multiple=True, type=click.Choice(ARCHS), help="Default: both.")
@click.option("--kernel", default="", metavar="TEXT", help="Only kernels with this in their name.")
@click.option("--seed", default=0, show_default=True, help="Of which mutants are drawn.")
@click.option("--most", default=20, show_default=True, help="Mutants of a kind and kernel.")
@click.option("--orders", default=3, show_default=True, help="Orders of waves that are tried.")
def main(arch: tuple[str, ...], kernel: str, seed: int, most: int, orders: int) -> None:
    """Print what became of the mutants, by kind and by kernel, and the survivors."""
    settle()
    from glm_portable.virtual.cdna.mutants import KINDS, Trial  # compiles: settle first
    from glm_portable.virtual.cdna.subjects import SUBJECTS, subject

    names = [name for name in SUBJECTS if kernel in name]
    if not names:
        raise click.UsageError(f"no kernel's name contains {kernel!r}: {', '.join(SUBJECTS)}.")
    targets = arch or ARCHS
    found: Found = {}
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("mutants", total=len(targets) * len(names) * len(KINDS))
        for target in targets:
            for name in names:
                trial = Trial(subject(name, target))
                for kind in KINDS:
                    mutants = trial.mutants(kind, most, seed)
                    verdicts = [trial.judge(m, range(orders)) for m in mutants]
                    found[f"{name}, {target}", kind] = verdicts
                    progress.advance(task)
    out = Console(highlight=False, width=None if sys.stdout.isatty() else 150)
    out.print(_by_kind(found, KINDS))
    out.print(_by_kernel(found, KINDS))
    for line in _survivors(found):
        out.print(line, markup=False)


def _rate(verdicts: "Sequence[Verdict]") -> str:
    counted = [v for v in verdicts if v.counts]
    return f"{sum(v.killed for v in counted)} / {len(counted)}" if counted else "-"


def _by_kind(found: "Found", kinds: Sequence[str]) -> Table:
    from glm_portable.virtual.cdna.mutants import IDLE, NEVER, SURVIVED, WRONG

    table = Table(title="mutants killed, by kind", title_justify="left")
    columns = ("kind", "killed", "by wrong result", "by fault", "never executed", "without effect")
    for column in columns:
        table.add_column(column, justify="left" if column == "kind" else "right")
    for kind in kinds:
        verdicts = [v for (_, k), some in found.items() if k == kind for v in some]
        outcomes = Counter(v.outcome for v in verdicts)
        special = {IDLE, NEVER, SURVIVED, WRONG}
        faults = ", ".join(f"{n} {o}" for o, n in outcomes.most_common() if o not in special)
        table.add_row(
            kind, _rate(verdicts), str(outcomes[WRONG]), faults or "0", str(outcomes[NEVER]),
            str(outcomes[IDLE]),
        )  # fmt: skip
    return table


def _by_kernel(found: "Found", kinds: Sequence[str]) -> Table:
    table = Table(title="mutants killed, by kernel", title_justify="left")
    for column in ("kernel", *kinds):
        table.add_column(column, justify="left" if column == "kernel" else "right")
    for name in dict.fromkeys(name for name, _ in found):
        table.add_row(name, *(_rate(found[name, kind]) for kind in kinds))
    return table


def _survivors(found: "Found") -> Iterator[str]:
    for (name, kind), verdicts in found.items():
        for verdict in verdicts:
            if verdict.counts and not verdict.killed:
                yield f"survived: {name}: {kind}: {verdict.mutant.text}"


if __name__ == "__main__":
    main()
