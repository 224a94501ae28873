"""Runs the measurements and prints the table."""

import json
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import torch
from rich import box
from rich.console import Console
from rich.table import Table

from glm_portable.bench.host.load import Load
from glm_portable.bench.host.measure import COLUMNS, build_step, engine_alone, served
from glm_portable.bench.host.null import LAYERS, VOCABULARY, null_tokenizer
from glm_portable.bench.host.server import run_null_server
from glm_portable.errors import UsageError
from glm_portable.tokenizer import Tokenizer

_ARITHMETIC_STEPS = 8
_WIDTH = 110

Column = dict[str, float]


def run_bench_host(
    sequences: Sequence[int],
    *,
    input_len: int,
    steps: int,
    repeats: int,
    step_ms: float,
    arithmetic: bool,
    json_path: Path | None = None,
    console: Console | None = None,
) -> None:
    """Print microseconds a step. Raises UsageError for bad input."""
    _check(sequences, input_len, steps, step_ms)
    if repeats < 1:
        raise UsageError(f"--repeats is {repeats}; it must be at least 1.")
    console = console or Console(width=_WIDTH)
    torch.set_num_threads(1)  # beside an accelerator nothing here is worth two threads
    tokenizer = null_tokenizer()
    found: dict[str, dict[str, Column]] = {}
    for sampled in (False, True):
        kind = "sampled" if sampled else "greedy"
        loads = [Load(count, input_len, steps, sampled) for count in sequences]
        turns = [
            # What takes minutes and depends on little, once.
            [_column(load, tokenizer, step_ms / 1000, arithmetic and not turn) for load in loads]
            for turn in range(repeats)
        ]
        found[kind] = {
            str(load.sequences): _medians(columns)
            for load, columns in zip(loads, zip(*turns, strict=True), strict=True)
        }
        console.print(_table(kind, found[kind], step_ms))
    if json_path is not None:
        setup = {"step_ms": step_ms, "input_len": input_len, "vocabulary": VOCABULARY}
        json_path.write_text(json.dumps(setup | found, indent=1) + "\n", encoding="utf-8")


def serve_null(
    sequences: Sequence[int], port: int, *, input_len: int, steps: int, step_ms: float, **_: object
) -> int:
    """Serve the model that computes nothing until a signal; the exit code. Raises UsageError."""
    _check(sequences, input_len, steps, step_ms)
    return run_null_server(Load(max(sequences), input_len, steps), step_ms / 1000, port)


def _check(sequences: Sequence[int], input_len: int, steps: int, step_ms: float) -> None:
    if min(sequences) < 1 or input_len < 1 or steps < 10 or step_ms <= 0:
        raise UsageError(
            "--sequences and --input-len must be at least 1, --steps at least 10, and --step-ms "
            "above 0."
        )


def _column(load: Load, tokenizer: Tokenizer, step_s: float, arithmetic: bool) -> Column:
    """Seconds a step of every row of the table."""
    parts = engine_alone(load, tokenizer, columns=COLUMNS["calls"])
    build = min(build_step(load), parts["prepare"])
    inside = served(load, tokenizer, step_s, socket=False)
    outside = served(load, tokenizer, step_s, socket=True)
    column = {
        "scheduling and the inbox": parts["prepare"] - build,
        "building the step": build,
        "sampling: its calls": parts["sample"],
        "what requests keep": parts["append"],
        "detokenising": parts["detokenise"],
        "engine alone": sum(parts.values()),
        "the step beyond the model, under HTTP": outside.added,
        "engine's process, CPU: its thread": outside.engine_thread,
        "engine's process, CPU": outside.engine_process,
        "server's process, CPU: application": inside.server_process,
        "server's process, CPU: with sockets": outside.server_process,
    }
    if arithmetic:
        short = Load(load.sequences, load.input_len, _ARITHMETIC_STEPS, load.sampled)
        slow = engine_alone(short, tokenizer, columns=COLUMNS["arithmetic"])
        column["(sampling with its arithmetic on this CPU)"] = slow["sample"]
    return column


def _medians(columns: Sequence[Column]) -> Column:
    return {row: median(c[row] for c in columns if row in c) for row in columns[0]}


def _table(kind: str, columns: dict[str, Column], step_ms: float) -> Table:
    title = f"{kind}: microseconds a step, and share of a decode step of {step_ms:g} ms"
    caption = (
        f"Null model of {LAYERS} layers, vocabulary {VOCABULARY:,}. Both processes run beside the "
        "accelerator, each in an interpreter of its own: the server's while the engine's goes on."
    )
    table = Table(title=title, caption=caption, box=box.SIMPLE, title_justify="left")
    table.add_column("")
    for count in columns:
        table.add_column(f"{count} seqs", justify="right")
        table.add_column("", justify="right")
    for row in next(iter(columns.values())):
        cells = []
        for column in columns.values():
            share = column[row] * 1000 / step_ms
            cells += [f"{column[row] * 1e6:,.0f}", f"{share:.1%}"]
        table.add_row(row, *cells)
    return table
