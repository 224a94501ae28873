"""The results as a table, for a terminal or for docs/kernels.md."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from rich.box import SIMPLE_HEAD
from rich.table import Table

from glm_portable.virtual.chips import CHIPS
from glm_portable.virtual.codegen.measure import Result, above_peer
from glm_portable.virtual.codegen.metrics import Metrics
from glm_portable.virtual.codegen.peers import Peer
from glm_portable.virtual.codegen.remarks import REMARKS

HEADINGS = {
    "hip": (
        "kernel", "configuration", "warps", "VGPR", "of them AGPR", "spills", "LDS", "waves",
        "WG/CU", "matrix instructions in the hot loop", "VALU", "loop", "VALU/MFMA",
        "VALU cycles/MFMA cycle", "loads (bytes x n)", "to LDS",
    ),
    "cuda": (
        "kernel", "configuration", "warps", "registers", "spill bytes", "shared", "warps/SMSP",
        "CTA/SM", "matrix instructions in the hot loop", "loop", "kernel", "loads (bytes x n)",
        "async",
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Section:
    """The table of one chip. rows have as many cells as `headings`."""

    title: str
    headings: Sequence[str]
    rows: Sequence[Sequence[str]]


def sections(results: Iterable[Result]) -> list[Section]:
    """One table a chip, each case followed by its peer."""
    by_target: dict[str, list[Sequence[str]]] = {}
    for result in results:
        rows = by_target.setdefault(result.case.target, [])
        if result.metrics is None:
            empty = [""] * (len(HEADINGS[CHIPS[result.case.target].vendor]) - 3)
            rows.append([result.case.kernel, result.case.configuration, "does not compile", *empty])
            continue
        rows.append(_row(result.case.kernel, result.case.configuration, result.metrics))
        if result.case.peer:
            rows.append(_peer_row(result.case.peer))
    return [
        Section(target, HEADINGS[CHIPS[target].vendor], rows) for target, rows in by_target.items()
    ]


def _row(kernel: str, configuration: str, m: Metrics) -> Sequence[str]:
    loop = m.loop
    matrix, loads = _counts(loop.matrix), _counts(loop.loads)
    cells: tuple[object, ...] = (
        m.num_warps, m.registers, m.spills, f"{m.shared:,}", m.waves, m.workgroups, matrix,
        loop.instructions, m.code_bytes // 16, loads, loop.async_copies,
    )  # fmt: skip
    if not m.chip.is_amd:
        return [kernel, configuration, *map(str, cells)]
    spills = f"{m.spills}" + (f" + {m.scalar_spills} SGPR" if m.scalar_spills else "")
    ratios = (f"{loop.valu_per_matrix:.2f}", f"{loop.pressure:.2f}") if loop.matrix else ("", "")
    cells = (
        m.num_warps, m.registers, m.accumulators, spills, f"{m.shared:,}", m.waves, m.workgroups,
        matrix, loop.valu, loop.instructions, *ratios, loads, loop.async_copies,
    )  # fmt: skip
    return [kernel, configuration, *map(str, cells)]


def _peer_row(peer: Peer) -> Sequence[str]:
    name, count = peer.matrix
    shared = "" if peer.shared is None else f"{peer.shared:,}"
    waves = "" if peer.waves is None else str(peer.waves)
    groups = "" if peer.workgroups is None else str(peer.workgroups)
    start = (f"({peer.engine})", peer.configuration, str(peer.num_warps), str(peer.registers))
    if peer.valu is None:
        end = (f"{name} x {count}", "", str(peer.instructions), "", "")
        return [*start, str(peer.spills), shared, waves, groups, *end]
    ratios = (f"{peer.valu / count:.2f}", f"{peer.pressure:.2f}")
    work = (f"{name} x {count}", str(peer.valu), str(peer.instructions), *ratios, "", "")
    return [*start, "", str(peer.spills), shared, waves, groups, *work]


def _counts(counts: Mapping[str, int] | Mapping[int, int]) -> str:
    return ", ".join(f"{name} x {count}" for name, count in sorted(counts.items(), key=str))


def remarks(results: Iterable[Result]) -> list[str]:
    """One sentence for each row that stands above its peer."""
    return [
        f"{r.case.kernel} on {r.case.target}, {r.case.configuration}: "
        + REMARKS.get((r.case.target, r.case.configuration), "no reason is known.")
        for r in results
        if r.metrics and above_peer(r.case, r.metrics)
    ]


def markdown(section: Section) -> str:
    """A GitHub table under a heading."""
    lines = [section.headings, ["---"] * len(section.headings), *section.rows]
    table = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
    return f"### {section.title}\n\n{table}\n"


def terminal(section: Section) -> Table:
    table = Table(title=section.title, box=SIMPLE_HEAD)
    for index, heading in enumerate(section.headings):
        table.add_column(heading, justify="left" if index < 2 else "right")
    for row in section.rows:
        table.add_row(*row)
    return table
