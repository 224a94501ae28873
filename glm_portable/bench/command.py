"""The bench command: alternate both sides and the machine's limits in one run, print a table.

Speeds of a shared or throttled machine drift by tens of percent within minutes. So the sides take
turns within each round, in turn first, and the ratio is the figure to quote.
"""

import json
from collections import defaultdict
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from glm_portable import hub, pocket
from glm_portable.bench import limits
from glm_portable.bench.process import Samples, Worker
from glm_portable.config import ModelConfig
from glm_portable.errors import UsageError

ITEMSIZE = {"bfloat16": 2, "float32": 4}
READ = 256 * 2**20
MATMUL = 2048
PROMPT = 32
AGAINST = ("transformers", "deterministic", "none")


@dataclass(frozen=True)
class Row:
    """One line of the table. limit is the machine's; peer and limit are None where not measured."""

    what: str
    unit: str
    ours: float
    peer: float | None = None
    ratio: float | None = None
    cpu_ratio: float | None = None
    limit: float | None = None
    quiet: str = ""


@dataclass(frozen=True)
class Task:
    """A speed to measure: `name` is a method of the worker's sides."""

    what: str
    name: str
    arguments: dict[str, int]
    tokens: int


def run_bench(
    model: str | None,
    *,
    backend: str = "auto",
    dtype: str = "bfloat16",
    threads: int = 0,
    prefill: int = 512,
    batches: Sequence[int] = (1, 8),
    steps: int = 16,
    repeats: int = 7,
    against: str = "transformers",
    revision: str | None = None,
    json_path: Path | None = None,
) -> None:
    """Measure MODEL (None: the pocket model) and print; raises UsageError for bad input.

    threads: 0 for torch's choice. steps: decode steps a repetition. against: "transformers",
    "deterministic" (the same model under --enable-deterministic-inference) or
    "none".
    """
    if dtype not in ITEMSIZE:
        raise UsageError(f"bench takes dtype bfloat16 or float32, not {dtype!r}.")
    if against not in AGAINST:
        raise UsageError(f"bench compares with {' or '.join(AGAINST)}, not {against!r}.")
    folder = pocket.FOLDER if model is None else hub.resolve(model, revision)
    tasks = [Task(f"prefill {prefill}", "prefill", {"tokens": prefill}, prefill)]
    for b in batches:
        tasks.append(Task(f"decode, batch {b}", "decode", {"batch": b, "steps": steps}, b * steps))
    config = ModelConfig.load(folder)
    with ExitStack() as stack:

        def start(side: str) -> Worker:
            return stack.enter_context(Worker(side, folder, dtype, backend, threads))

        ours, peer = start("ours"), start(against) if against != "none" else None
        machine, samples = _alternate(ours, peer, start("machine"), tasks, repeats)
        rows = []
        for task in tasks:
            theirs = None if peer is None else samples[peer.side, task.what]
            limit = _limit(task, config, ITEMSIZE[dtype], machine, ours)
            rows.append(_speed(task, samples[ours.side, task.what], theirs, limit))
        rows += _costs(ours, peer)
        used = int(ours.loaded["threads"])
    _print(rows, machine, used, f"{folder.name}, {dtype}, {backend}", against)
    if json_path is not None:
        report = {"threads": used, "machine": asdict(machine), "rows": [asdict(r) for r in rows]}
        json_path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def _alternate(
    ours: Worker, peer: Worker | None, machine: Worker, tasks: Sequence[Task], repeats: int
) -> tuple[limits.Machine, dict[tuple[str, str], Samples]]:
    """Each task on each side `repeats` times; the side that goes first changes every round."""
    yardsticks = [
        Task("bandwidth", "bandwidth", {"bytes_read": READ}, 0),
        Task("matmul", "matmul", {"size": MATMUL}, 0),
    ]
    sides = [ours] if peer is None else [ours, peer]
    samples: dict[tuple[str, str], Samples] = defaultdict(Samples)
    for _ in range(repeats):
        plan = [(side, task) for task in tasks for side in sides]
        for side, task in [*plan, *((machine, task) for task in yardsticks)]:
            samples[side.side, task.what].taken.append(side.sample(task.name, **task.arguments))
        sides.reverse()
    bandwidth = READ / samples["machine", "bandwidth"].best
    flops = 2 * MATMUL**3 / samples["machine", "matmul"].best
    return limits.Machine(bandwidth, flops), samples


def _limit(
    task: Task, config: ModelConfig, itemsize: int, machine: limits.Machine, ours: Worker
) -> float:
    """The machine's limit for a task, in tokens a second."""
    if task.name == "prefill":
        pairs = task.tokens * (task.tokens + 1) // 2
        operations = limits.operations(config, task.tokens, 1, pairs)
        return machine.tokens_per_second(
            task.tokens, limits.prefill_bytes(config, itemsize), operations
        )
    batch, steps = task.arguments["batch"], task.arguments["steps"]
    experts = ours.ask("experts_read", batch=batch, steps=steps)["value"]
    operations = limits.operations(config, batch, batch, batch * (PROMPT + steps // 2))
    return machine.tokens_per_second(
        batch, limits.decode_bytes(config, experts, itemsize), operations
    )


def _speed(task: Task, ours: Samples, peer: Samples | None, limit: float) -> Row:
    quiet = f"{len(ours.quiet)}/{len(ours.taken)}"
    speed = task.tokens / ours.wall
    if peer is None:
        return Row(task.what, "tokens/s", speed, limit=limit, quiet=quiet)
    return Row(
        task.what, "tokens/s", speed, task.tokens / peer.wall,
        peer.wall / ours.wall, peer.cpu / ours.cpu, limit, quiet,
    )  # fmt: skip


def _costs(ours: Worker, peer: Worker | None) -> list[Row]:
    """Load time and memory; a ratio above 1 is again in our favour."""
    rows = []
    for what, unit, key, size in (
        ("load", "s", "wall", 1),
        ("peak while loading", "GiB", "peak", 2**30),
    ):
        a = ours.loaded[key] / size
        b = None if peer is None else peer.loaded[key] / size
        rows.append(Row(what, unit, a, b, None if b is None else b / a))
    return rows


def _print(
    rows: Sequence[Row], machine: limits.Machine, threads: int, title: str, peer: str
) -> None:
    table = Table(title=title, box=box.SIMPLE)
    for head in ("", "ours", peer, "ratio", "CPU ratio", "limit", "of limit", "quiet"):
        table.add_column(head, justify="right" if head else "left", no_wrap=True)
    for row in rows:
        of_limit = "" if row.limit is None else f"{row.ours / row.limit:.0%}"
        ratios = ["" if r is None else f"{r:.2f}" for r in (row.ratio, row.cpu_ratio)]
        table.add_row(
            f"{row.what}, {row.unit}", _number(row.ours), _number(row.peer), *ratios,
            _number(row.limit), of_limit, row.quiet,
        )  # fmt: skip
    console = Console(width=max(Console().width, 110))  # cut to 80 columns, it says nothing
    console.print(table)
    console.print(
        f"{threads} threads; memory {machine.bandwidth / 1e9:.1f} GB/s, "
        f"matrix product {machine.flops / 1e12:.2f} TFLOP/s, measured in the same run.\n"
        "ratio: of medians, above 1 where ours is better; CPU ratio: of processor seconds;\n"
        "quiet: repetitions that other programs did not disturb."
    )


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:,.1f}"
