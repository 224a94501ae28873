"""What a person sees of `verify bisect` and `verify replay`, and what a report gets."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from glm_portable.ops import Ops
from glm_portable.verify.bisect.explain import headline, numbers, why
from glm_portable.verify.bisect.part_rule import Judged
from glm_portable.verify.bisect.reproducer import Replayed
from glm_portable.verify.bisect.search import Bisection
from glm_portable.verify.bisect.sweep import PartSeen, Side
from glm_portable.verify.report import about
from glm_portable.verify.report.text import count
from glm_portable.verify.results import Check, Status

HEADINGS = ("part", "A's error", "B's", "allowed", "B's slope", "B's flips", "B free", "")
"""Errors on the input that A's part had. free: the error behind this part when B computes all that
is before it, too, in per cent of what is allowed."""
Folders = Mapping[int, tuple[Path, bool]]
"""Reproducers of faults, by their number: where, and whether they are wrong alone."""


def parts_table(console: Console, bisection: Bisection) -> Table:
    """Runs the bisection; a row for every part."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for heading in HEADINGS:
        left = heading in ("part", "")
        table.add_column(heading, justify="left" if left else "right", no_wrap=heading != "")
    with console.status("comparing") if console.is_terminal else nullcontext() as status:
        for seen in bisection.run():
            table.add_row(*cells(seen))
            if status is not None:
                status.update(f"now after {seen.name}")
    return table


def cells(seen: PartSeen) -> Sequence[str]:
    """Cells of HEADINGS."""
    a, b, free = seen.a.taught, seen.b.taught, seen.b.free
    sides = (("A", seen.a), ("B", seen.b))
    wrong = [who for who, side in sides if side.taught.findings]
    alone = [who for who, side in sides if side.free.findings]
    words = [f"{' and '.join(wrong)} beyond the rule"] if wrong else []
    words += [f"{' and '.join(alone)} left to itself too"] if alone else []
    flips = f"{b.unexplained} unexplained" if b.unexplained else str(b.explained)
    return [
        seen.name, f"{a.worst.error:.3g}", f"{b.worst.error:.3g}", f"{b.allowed:.3g}",
        f"{b.worst.slope:.4f}", flips, f"{free.excess:.0%}", "; ".join(words) or "ok",
    ]  # fmt: skip


def say(
    console: Console,
    bisection: Bisection,
    labels: dict[str, str],
    folders: Folders,
    seconds: float,
) -> None:
    """What was found, in words."""

    def line(text: str, style: str = "") -> None:
        console.print(Text(text, style=style))

    for i, fault in enumerate(bisection.faults):
        line("")
        line(f"FOUND: {headline(fault, labels)}", "bold red" if i == 0 else "red")
        if fault.steps:
            line(f"  in {', '.join(fault.steps)}")
        if (text := numbers(fault)) is not None:
            line(f"  {text}")
        for finding in fault.findings:
            line(f"  {finding}")
        for sentence in why(fault):
            line(f"  {sentence}", "dim")
        if i in folders:
            path, alone = folders[i]
            line(f"  reproducer: {path} ({'wrong' if alone else 'right'} alone)")
            line(f"  again: glm-portable verify replay {path}")
            if not alone:
                line("  Alone it is right: what ran before, or how its weight was packed, matters.")
    line("")
    first = bisection.first_free
    if first is not None:
        line(f"Left to themselves the models part beyond rounding from {first.name} on.")
    calls, opened = sum(bisection.opened.values()), len(bisection.opened)
    looked = f"{count(len(bisection.parts), 'part')} compared, {count(calls, 'call')} of ops judged"
    verdict = (
        f"{count(len(bisection.faults), 'fault')} found" if bisection.faults else "nothing found"
    )
    style = "bold red" if bisection.faults else "bold green"
    line(f"{verdict}: {looked} in {opened} of them, {seconds:.1f} s", style)


def checks(bisection: Bisection, labels: Mapping[str, str], folders: Folders) -> Iterator[Check]:
    """Parts, then faults; for a report."""
    for seen in bisection.parts:
        for who in ("a", "b"):
            side: Side = getattr(seen, who)
            yield _check("model", seen.name, f"{labels[who]} on {labels['a']}'s input", side.taught)
    for i, fault in enumerate(bisection.faults):
        evidence = fault.evidence
        yield Check(
            "ops" if fault.op else "model",
            fault.op or fault.part,
            f"{labels[fault.who]}, {fault.part}: {fault.place or 'as a whole'}",
            Status.FAIL,
            fault.findings,
            evidence.judged.measures if evidence else {},
            kernels=evidence.kernels if evidence else {},
            note=f"reproducer: {folders[i][0]}" if i in folders else "",
        )


def _check(level: str, part: str, name: str, judged: Judged) -> Check:
    status = Status.FAIL if judged.findings else Status.PASS
    return Check(level, part, name, status, judged.findings, judged.measures())


def about_both(labels: Mapping[str, str], machines: Mapping[str, Ops]) -> dict[str, str]:
    a, b = about(machines["a"]), about(machines["b"])
    own = {f"A {k}": v for k, v in a.items() if b.get(k) != v}
    return {"A": labels["a"], "B": labels["b"], **own, **b}


def then_and_now(found: Replayed) -> Table:
    """Numbers of the model's run, of the same call alone, and of now."""
    said = found.stored.about
    wrong = said["backends"][said["wrong"]]
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for heading in ("", f"{wrong}, in the model", f"{wrong}, alone then", f"{found.backend}, now"):
        table.add_column(heading)
    columns: list[Mapping[str, Any]] = [
        said["numbers"], said["alone"]["numbers"], found.now.measures
    ]  # fmt: skip
    for name in dict.fromkeys(name for column in columns for name in column):
        row = (f"{float(column[name]):.5g}" if name in column else "" for column in columns)
        table.add_row(name.replace("_", " "), *row)
    return table
