"""Takes the modes in turn, so that a machine that slows down slows all, and prints the table."""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any, get_args

import torch
from rich import box
from rich.console import Console
from rich.table import Table

from glm_portable import hub, pocket
from glm_portable.bench.speculative.break_even import least_acceptance
from glm_portable.bench.speculative.measure import Mode, Subject, load
from glm_portable.engine.speculative import Chain, SpeculativeConfig
from glm_portable.errors import UsageError

TOGETHER = 16
"""Questions answered at once where no time is taken."""

CHAINS = {"normed": "normed hidden state", "residual": "hidden state before the norm"}


@dataclass(frozen=True)
class Row:
    """One number of drafts. Speeds and ratios are of medians; above 1 is faster than without.

    tokens_a_step: of a sequence. accepted: share of drafts that were right and so were all before
    them, by position. verify_ms, draft_ms: of a pass of the model with all drafts, and of the MTP
    layer. cost: of a whole step, in steps without drafts: it pays from so many tokens a step on, or
    if each draft is right with the probability `acceptance`; None if it never does. same_answers:
    how many are token for token those without drafts.
    """

    k: int
    tokens_per_second: float
    ratio: float
    ratio_whole: float
    tokens_a_step: float
    accepted: list[float]
    verify_ms: float | None
    draft_ms: float | None
    cost: float | None
    acceptance: float | None
    same_answers: int


def run_bench(
    model: str | None,
    *,
    backend: str = "auto",
    dtype: str = "bfloat16",
    revision: str | None = None,
    threads: int = 0,
    processor_time: bool = False,
    most: int = 5,
    batch: int = 1,
    questions: int = 8,
    max_tokens: int = 64,
    repeats: int = 5,
    chain_questions: int = 0,
    json_path: Path | None = None,
) -> None:
    """Measure MODEL (None: the pocket model) and print; raises UsageError for bad input.

    processor_time: of this process instead of time, which others on the machine lengthen; with one
    thread on a CPU it is what the time would be without them.
    """
    if threads:
        torch.set_num_threads(threads)
    folder = pocket.FOLDER if model is None else hub.resolve(model, revision)
    clock = time.process_time if processor_time else time.perf_counter
    subject = load(folder, backend, dtype, clock)
    if processor_time and (torch.get_num_threads() > 1 or subject.model.ops.device.type != "cpu"):
        raise UsageError("--processor-time tells the time of one thread on a CPU: use --threads 1.")
    modes = measure(subject, subject.ask(questions), most, batch, max_tokens, repeats)
    rows = [row(mode, modes[0]) for mode in modes]
    name = f"{folder.name}, {dtype}, {subject.model.ops.name}"
    console = Console(width=max(Console().width, 130))  # cut to 80 columns, it says nothing
    show(console, rows, f"{name}, {questions} questions, {batch} at once")
    chains: dict[str, list[float]] = {}
    if chain_questions and most > 1:
        chains = compare_chains(subject, subject.ask(chain_questions), most, max_tokens)
        show_chains(console, chains, f"{name}, {chain_questions} questions")
    if json_path is not None:
        report: dict[str, Any] = {
            "threads": torch.get_num_threads(),
            "rows": [asdict(each) for each in rows],
        }
        report["chains"] = chains
        json_path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def measure(
    subject: Subject,
    prompts: Sequence[list[int]],
    most: int,
    batch: int,
    max_tokens: int,
    repeats: int,
) -> list[Mode]:
    """Without drafts, and with 1 to `most`."""
    modes = [Mode(None), *(Mode(SpeculativeConfig(k)) for k in range(1, most + 1))]
    for mode in modes:  # not counted: fills caches, and compiles where a backend does
        mode.run(subject, prompts[:batch], batch, max_tokens)
        for times in (mode.decode, mode.whole, mode.steps):
            times.clear()
    for number in range(repeats):
        for mode in modes[:: -1 if number % 2 else 1]:
            mode.run(subject, prompts, batch, max_tokens)
    return modes


def compare_chains(
    subject: Subject, prompts: Sequence[list[int]], most: int, max_tokens: int
) -> dict[str, list[float]]:
    """What is accepted by position if further drafts are made from either hidden state."""
    accepted = {}
    for chain in get_args(Chain):
        mode = Mode(SpeculativeConfig(most, chain))
        mode.run(subject, prompts, TOGETHER, max_tokens)
        accepted[chain] = mode.shares
    return accepted


def row(mode: Mode, off: Mode) -> Row:
    """One mode beside the one without drafts."""
    step, plain = mode.step, off.step
    cost = step.whole / plain.whole if step and plain else None
    pairs = zip(mode.answers, off.answers, strict=True)
    return Row(
        k=mode.k,
        tokens_per_second=mode.tokens / median(mode.decode),
        ratio=median(off.decode) / median(mode.decode),
        ratio_whole=median(off.whole) / median(mode.whole),
        tokens_a_step=mode.tokens / mode.rows,
        accepted=mode.shares,
        verify_ms=step.verify * 1e3 if step else None,
        draft_ms=step.draft * 1e3 if step and mode.k else None,
        cost=cost,
        acceptance=None if cost is None else least_acceptance(cost, mode.k),
        same_answers=sum(a == b for a, b in pairs),
    )


def show(console: Console, rows: Sequence[Row], title: str) -> None:
    heads = ("tokens/s", "ratio", "whole", "tokens/step", "accepted by position",
             "verify ms", "draft ms", "pays from", "acceptance", "same")  # fmt: skip
    table = _table(title, "drafts", heads)
    for each in rows:
        table.add_row(
            f"{each.k or 'off'}",
            f"{each.tokens_per_second:,.1f}",
            f"{each.ratio:.2f}",
            f"{each.ratio_whole:.2f}",
            f"{each.tokens_a_step:.2f}",
            _percent(each.accepted),
            _number(each.verify_ms),
            _number(each.draft_ms),
            *_break_even(each),
            f"{each.same_answers}",
        )
    console.print(table)
    console.print(
        f"{torch.get_num_threads()} threads, all in one run. ratio: of the seconds after the first "
        "token, without drafts\nover with them; whole: of all seconds, the prompt's too. accepted: "
        "share of the drafts that were right,\nand all before them. verify, draft: a pass of the "
        "model over a token and its drafts, and of the MTP layer.\npays from: tokens a step that "
        "make up for the step's cost, and the acceptance of each draft that gives\nthem. same: "
        "answers token for token as without drafts."
    )


def show_chains(console: Console, chains: Mapping[str, list[float]], title: str) -> None:
    table = _table(title, "drafted further from", ("accepted by position", "tokens/step"))
    for chain, accepted in chains.items():
        table.add_row(CHAINS[chain], _percent(accepted), f"{1 + sum(accepted):.2f}")
    console.print(table)


def _table(title: str, first: str, heads: Sequence[str]) -> Table:
    table = Table(title=title, box=box.SIMPLE)
    table.add_column(first, no_wrap=True)
    for head in heads:
        table.add_column(head, justify="right", no_wrap=True)
    return table


def _percent(shares: Sequence[float]) -> str:
    return " ".join(f"{share:.0%}" for share in shares)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _break_even(each: Row) -> tuple[str, str]:
    if each.k == 0 or each.cost is None:
        return "", ""
    return f"{each.cost:.2f}", "never" if each.acceptance is None else f"{each.acceptance:.0%}"
