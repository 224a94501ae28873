"""The results as a table, for a terminal or for docs/kernels.md."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from rich.box import SIMPLE_HEAD
from rich.table import Table

from glm_portable.errors import UsageError
from glm_portable.virtual.chips import CHIPS
from glm_portable.virtual.codegen.cases import SUMMED as SUMMED_GROUPS
from glm_portable.virtual.codegen.cases import Group
from glm_portable.virtual.codegen.measure import Result, better_peers
from glm_portable.virtual.codegen.metrics import Metrics
from glm_portable.virtual.codegen.peers import Peer
from glm_portable.virtual.codegen.remarks import REMARKS

BEGIN = "<!-- tables: python -m glm_portable.virtual.codegen --into docs/kernels.md -->"
END = "<!-- end of the tables -->"
HEADINGS = {
    "hip": (
        "kernel", "configuration", "warps", "VGPR", "of them AGPR", "spills", "LDS", "waves",
        "WG/CU", "matrix instructions in the hot loop", "VALU", "loop", "VALU/MFMA",
        "VALU cycles/MFMA cycle", "loads (bytes x n)", "to LDS",
    ),
    "cuda": (
        "kernel", "configuration", "warps", "registers", "spill bytes", "shared", "warps/SMSP",
        "CTA/SM", "matrix instructions in the hot loop", "arithmetic", "loop", "arithmetic/MMA",
        "kernel", "loads (bytes x n)", "async",
    ),
}  # fmt: skip
SUMMED = (
    "tiles", "kernels", "most registers", "spills", "most LDS/shared", "fewest waves",
    "matrix instructions", "most VALU/matrix", "narrowest load of A or B",
)  # fmt: skip
TITLES: Mapping[Group, str] = {
    "beside peers": "grouped product, at the tiles of peers",
    "own tiles": "grouped product, at the tiles this project picks",
    "attention": "attention",
    "rows": "all other kernels",
    "all shapes": "grouped product, every kernel that all shapes of both models come down to",
    "any tokens": "grouped product, the same in deterministic inference",
}


@dataclass(frozen=True)
class Section:
    """One table. rows have as many cells as `headings`."""

    title: str
    headings: Sequence[str]
    rows: Sequence[Sequence[str]]


def sections(results: Iterable[Result]) -> list[Section]:
    """For each chip a table of each group of cases, each case followed by its peers."""
    groups: dict[tuple[str, Group], list[Result]] = {}
    for result in results:
        groups.setdefault((result.case.target, result.case.group), []).append(result)
    return [
        _summed(f"{target}: {TITLES[group]}", members)
        if group in SUMMED_GROUPS
        else Section(
            f"{target}: {TITLES[group]}",
            HEADINGS[CHIPS[target].vendor],
            [row for result in members for row in rows(result)],
        )
        for (target, group), members in groups.items()
    ]


def rows(result: Result) -> list[Sequence[str]]:
    """The row of one case, and those of its peers."""
    case, metrics = result.case, result.metrics
    width = len(HEADINGS[CHIPS[case.target].vendor])
    if metrics is None:
        return [[case.kernel, case.configuration, "does not compile", *[""] * (width - 3)]]
    row = _row(case.kernel, case.configuration, metrics)
    return [row, *map(_peer_row, case.peers)]


def _row(kernel: str, configuration: str, m: Metrics) -> Sequence[str]:
    loop = m.loop
    loads = _counts(loop.loads)
    matrix = _counts(loop.matrix) or "none"
    ratio = f"{loop.valu_per_matrix:.2f}" if loop.matrix else ""
    start: tuple[object, ...]
    end: tuple[object, ...]
    if not m.chip.is_amd:
        start = (m.num_warps, m.registers, m.spills, f"{m.shared:,}", m.waves, m.workgroups)
        end = (loop.valu, loop.instructions, ratio, m.instruction_count, loads, loop.async_copies)
    else:
        spills = f"{m.spills}" + (f" + {m.scalar_spills} SGPR" if m.scalar_spills else "")
        pressure = f"{loop.pressure:.2f}" if loop.matrix else ""
        start = (
            m.num_warps, m.registers, m.accumulators, spills, f"{m.shared:,}", m.waves,
            m.workgroups,
        )  # fmt: skip
        end = (loop.valu, loop.instructions, ratio, pressure, loads, loop.async_copies)
    return [kernel, configuration, *map(str, (*start, matrix, *end))]


def _peer_row(peer: Peer) -> Sequence[str]:
    name, count = peer.matrix
    shared = "" if peer.shared is None else f"{peer.shared:,}"
    waves = "" if peer.waves is None else str(peer.waves)
    groups = "" if peer.workgroups is None else str(peer.workgroups)
    start = (f"({peer.engine})", peer.configuration, str(peer.num_warps), str(peer.registers))
    if peer.valu is None:
        end = (f"{name} x {count}", "", "", "", str(peer.instructions), "", "")
        return [*start, str(peer.spills), shared, waves, groups, *end]
    ratios = (f"{peer.valu / count:.2f}", f"{peer.pressure:.2f}")
    work = (f"{name} x {count}", str(peer.valu), str(peer.instructions), *ratios, "", "")
    return [*start, "", str(peer.spills), shared, waves, groups, *work]


def _counts(counts: Mapping[str, int] | Mapping[int, int]) -> str:
    return ", ".join(f"{name} x {count}" for name, count in sorted(counts.items(), key=str))


def _summed(title: str, results: Iterable[Result]) -> Section:
    """One row for all kernels of the same kind: the worst of each figure."""
    kinds: dict[str, list[Metrics]] = {}
    for result in results:
        found = kinds.setdefault(result.case.kind, [])
        found += [result.metrics] if result.metrics else []
    return Section(title, SUMMED, [_worst(kind, found) for kind, found in kinds.items() if found])


def _worst(kind: str, found: Sequence[Metrics]) -> Sequence[str]:
    names = sorted({name for m in found for name in m.loop.matrix})
    figures = (
        len(found), max(m.registers for m in found), max(m.spills for m in found),
        f"{max(m.shared for m in found):,}", min(m.waves for m in found), ", ".join(names),
        f"{max(m.loop.valu_per_matrix for m in found):.2f}",
        min(min(m.loop.loads, default=16) for m in found),
    )  # fmt: skip
    return [kind, *map(str, figures)]


def summary(results: Sequence[Result]) -> list[str]:
    """What the tables come to, in sentences."""
    built = [r.metrics for r in results if r.metrics]
    beside = [r for r in results if r.case.peers and r.metrics]
    above = [r for r in beside if r.metrics and better_peers(r.case, r.metrics)]
    spilled = sum(bool(m.spills or m.scalar_spills) for m in built)
    large = sum(m.shared > m.chip.shared_limit for m in built)
    findings = sum(len(r.findings) for r in results)
    return [
        f"Rows above the best peer: {len(above)} of {len(beside)}.",
        f"Kernels that spill: {spilled} of {len(built)}; that need more shared memory than the "
        f"chip has: {large}; findings of the gate: {findings}.",
    ]


def remarks(results: Iterable[Result]) -> list[str]:
    """One sentence for each row that stands above a peer."""
    return [
        f"{r.case.kernel} on {r.case.target}, {r.case.configuration}: "
        + REMARKS.get((r.case.target, r.case.configuration), "no reason is known.")
        for r in results
        if r.metrics and better_peers(r.case, r.metrics)
    ]


def document(results: Sequence[Result]) -> str:
    """All of it in GitHub's markdown."""
    points = [f"- {sentence}" for sentence in (*summary(results), *remarks(results))]
    tables = [markdown(section) for section in sections(results)]
    return "\n".join([*points, "", *tables])


def markdown(section: Section) -> str:
    """A table under a heading."""
    lines = [section.headings, ["---"] * len(section.headings), *section.rows]
    return f"### {section.title}\n\n" + "\n".join(map(line, lines)) + "\n"


def line(cells: Sequence[str]) -> str:
    """One row of a table in markdown."""
    return f"| {' | '.join(cells)} |"


def spliced(text: str, tables: str) -> str:
    """A document with its tables replaced. Raises UsageError if it does not mark their place."""
    head, begin, rest = text.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise UsageError(f"the document has no lines {BEGIN!r} and {END!r} to put tables between.")
    return f"{head}{BEGIN}\n{tables}{END}{tail}"


def terminal(section: Section) -> Table:
    table = Table(title=section.title, box=SIMPLE_HEAD)
    for index, heading in enumerate(section.headings):
        table.add_column(heading, justify="left" if index < 2 else "right")
    for row in section.rows:
        table.add_row(*row)
    return table
