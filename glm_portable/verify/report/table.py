"""A report in the terminal: one line a subject, every failure in full, the verdict last."""

from collections.abc import Iterable, Iterator
from contextlib import nullcontext

from rich.console import Console, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from glm_portable.verify.report.groups import Group, grouped, ratio, totals, verdict
from glm_portable.verify.report.meaning import why
from glm_portable.verify.report.text import count, figure, plain
from glm_portable.verify.results import Check, Report, Status

STYLES = {
    Status.PASS: "green",
    Status.FAIL: "bold red",
    Status.UNSUPPORTED: "yellow",
    Status.SKIPPED: "dim",
}
WORDS = {
    Status.PASS: "pass",
    Status.FAIL: "FAIL",
    Status.UNSUPPORTED: "unsup.",
    Status.SKIPPED: "skip",
}
MOST_KERNELS = 3


def show(report: Report, console: Console) -> None:
    """Print all of it."""
    console.print(Text(plain(report.title), style="bold"))
    console.print(_about(report))
    for level, groups in grouped(report.checks).items():
        console.print()
        console.print(_level(level, groups))
    for check in report.checks:
        if check.status is Status.FAIL:
            console.print()
            _print_failure(check, console)
    _print_remarks(report, console)
    console.print()
    seconds = sum(check.seconds for check in report.checks)
    style = {"FAIL": "bold red", "PASS": "bold green"}.get(verdict(report), "bold yellow")
    text = f"{verdict(report)}  {totals(report)} in {seconds:.1f} s"
    console.print(Text(text, style=style))


def printed(checks: Iterable[Check], console: Console, *, verbose: bool = False) -> Iterator[Check]:
    """The same checks; each is printed as it comes if `verbose`, else only failures are.

    On a terminal the number made so far is shown meanwhile.
    """
    shown = console.is_terminal and not verbose
    with console.status("verifying") if shown else nullcontext() as status:
        for made, check in enumerate(checks, 1):
            if verbose or check.status is Status.FAIL:
                console.print(_line(check))
            if status is not None:
                at = Text(f"{count(made, 'check')}, now after {plain(_name(check))}")
                at.truncate(console.width - 4, overflow="ellipsis")
                status.update(at)
            yield check


def _about(report: Report) -> Table:
    table = Table.grid(padding=(0, 2))
    for name, value in report.about.items():
        table.add_row(Text(plain(name), style="dim"), Text(plain(value), overflow="fold"))
    return table


def _level(level: str, groups: list[Group]) -> Table:
    """One row a group. Columns that no group has anything for are left out."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    measured = any(group.worst for group in groups)
    ran = any(group.kernels for group in groups)
    table.add_column("", no_wrap=True)
    table.add_column(plain(level), overflow="fold", min_width=12)
    table.add_column("checks", justify="right", no_wrap=True)
    if measured:
        table.add_column("worst error", overflow="fold", min_width=16)
    if ran:
        table.add_column("kernels seen", overflow="fold")
    for group in groups:
        cells: list[RenderableType] = [_word(group.status), Text(group.label), _counts(group)]
        cells += [_worst(group)] if measured else []
        cells += [_kernels(group)] if ran else []
        table.add_row(*cells)
    return table


def _word(status: Status) -> Text:
    return Text(WORDS[status], style=STYLES[status])


def _counts(group: Group) -> Text:
    """How many checks; of these, how many are of its status if not all are."""
    whole, mine = len(group.checks), group.count(group.status)
    return Text(f"{whole}" if whole == mine else f"{mine} of {whole}")


def _worst(group: Group) -> Text:
    if group.worst is None:
        return Text("")
    share = ratio(group.worst) or 0.0
    name = group.worst.name if len(group.checks) > 1 else ""
    if len({check.subject for check in group.checks}) > 1:
        name = group.worst.subject
    text = f"{share:.2f} of allowed" if share < 10 else f"{share:.3g} x allowed"
    return Text(f"{text}{', ' if name else ''}{plain(name)}")


def _kernels(group: Group) -> Text:
    names = list(group.kernels)
    more = f" +{len(names) - MOST_KERNELS}" if len(names) > MOST_KERNELS else ""
    return Text(", ".join(names[:MOST_KERNELS]) + more)


def _line(check: Check) -> Text:
    """One check in one line: FAIL ops linear: odd widths (1.8 of allowed)  error 1 exceeds ..."""
    line = Text.assemble((f"{WORDS[check.status]:<6} ", STYLES[check.status]), plain(_name(check)))
    share = ratio(check)
    if share is not None:
        line.append(f"  {share:.2f} of allowed", style="dim")
    said = "; ".join(check.findings) or check.note
    if said:
        line.append(f"  {plain(said)}")
    return line


def _name(check: Check) -> str:
    return f"{check.level} {check.subject}: {check.name}"


def _print_failure(check: Check, console: Console) -> None:
    console.print(Text.assemble(("FAIL ", "bold red"), (plain(_name(check)), "bold")))
    lines = [Text(plain(finding), style="red") for finding in check.findings]
    lines += [Text(f"Why it matters: {' '.join(why(check))}")] if why(check) else []
    lines += [Text(plain(check.note))] if check.note else []
    if check.measures:
        values = [f"{name} {figure(value)}" for name, value in check.measures.items()]
        lines.append(Text(plain(", ".join(values)), style="dim"))
    ran = ", ".join(f"{name} x {n}" for name, n in check.kernels.items())
    lines += [Text(f"kernels seen: {plain(ran)}", style="dim")] if ran else []
    for line in lines:
        console.print(Padding(line, (0, 0, 0, 5), expand=False))


def _print_remarks(report: Report, console: Console) -> None:
    """What was not looked at, or not to be had, one line for all checks with the same reason."""
    for status in (Status.UNSUPPORTED, Status.SKIPPED):
        reasons: dict[str, list[Check]] = {}
        for check in report.checks:
            if check.status is status:
                reasons.setdefault(check.note or "no reason given", []).append(check)
        for reason, checks in reasons.items():
            names = list(dict.fromkeys(f"{check.level} {check.subject}" for check in checks))
            console.print()
            what = f" {', '.join(names)} ({count(len(checks), 'check')}): {reason}"
            console.print(Text.assemble((status.value, STYLES[status]), plain(what)))
