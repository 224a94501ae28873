"""Takes the modes in turn, so that a machine that slows down slows all, and prints the table."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import torch
from rich import box
from rich.console import Console
from rich.table import Table

from glm_portable import hub, pocket
from glm_portable.bench.speculative.break_even import least_acceptance
from glm_portable.bench.speculative.measure import Mode, Subject, load
from glm_portable.engine.speculative import SpeculativeConfig


@dataclass(frozen=True)
class Row:
    """One mode. Speeds and ratios are of medians; a ratio above 1 is faster than without drafts.

    tokens_a_step: of a sequence. accepted: share of drafts that were right and so were all before
    them, by position. verify_ms, draft_ms: of a pass of the model with all drafts, and of the MTP
    layer. cost: of a whole step, in steps without drafts: it pays from so many tokens a step on, or
    if each draft is right with the probability `acceptance`; None if it never does. same_answers:
    how many are token for token those without drafts.
    """

    k: int
    chain: str
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
    most: int = 5,
    batch: int = 1,
    questions: int = 16,
    max_tokens: int = 128,
    repeats: int = 5,
    json_path: Path | None = None,
) -> None:
    """Measure MODEL (None: the pocket model) and print; raises UsageError for bad input."""
    if threads:
        torch.set_num_threads(threads)
    folder = pocket.FOLDER if model is None else hub.resolve(model, revision)
    subject = load(folder, backend, dtype, questions)
    modes = measure(subject, most, batch, max_tokens, repeats)
    rows = [row(mode, modes[0]) for mode in modes]
    name = f"{folder.name}, {dtype}, {subject.model.ops.name}"
    show(rows, f"{name}, {questions} questions, {batch} at once", torch.get_num_threads())
    if json_path is not None:
        report = {"threads": torch.get_num_threads(), "rows": [asdict(each) for each in rows]}
        json_path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def measure(subject: Subject, most: int, batch: int, max_tokens: int, repeats: int) -> list[Mode]:
    """Without drafts first, then each number of drafts, from the second on in both ways."""
    modes = [Mode(None), Mode(SpeculativeConfig(1))]
    for k in range(2, most + 1):
        modes += [Mode(SpeculativeConfig(k, chain)) for chain in ("normed", "residual")]
    for mode in modes:  # not counted: fills caches, and compiles where a backend does
        mode.run(subject, batch, max_tokens)
        mode.decode.clear()
        mode.whole.clear()
        mode.steps.clear()
    for number in range(repeats):
        for mode in modes[:: -1 if number % 2 else 1]:
            mode.run(subject, batch, max_tokens)
    return modes


def row(mode: Mode, off: Mode) -> Row:
    """One mode beside the one without drafts."""
    step, plain = mode.step, off.step
    cost = step.whole / plain.whole if step and plain else None
    pairs = zip(mode.answers, off.answers, strict=True)
    return Row(
        k=mode.k,
        chain=mode.speculative.chain if mode.speculative and mode.k > 1 else "",
        tokens_per_second=mode.tokens / median(mode.decode),
        ratio=median(off.decode) / median(mode.decode),
        ratio_whole=median(off.whole) / median(mode.whole),
        tokens_a_step=mode.tokens / mode.rows,
        accepted=[count / max(1, mode.drafts) for count in mode.accepted],
        verify_ms=step.verify * 1e3 if step else None,
        draft_ms=step.draft * 1e3 if step and mode.k else None,
        cost=cost,
        acceptance=None if cost is None else least_acceptance(cost, mode.k),
        same_answers=sum(a == b for a, b in pairs),
    )


def show(rows: Sequence[Row], title: str, threads: int) -> None:
    table = Table(title=title, box=box.SIMPLE)
    heads = ("drafts", "tokens/s", "ratio", "whole", "tokens/step", "accepted by position",
             "verify ms", "draft ms", "pays from", "acceptance", "same")  # fmt: skip
    for place, head in enumerate(heads):
        table.add_column(head, justify="right" if place else "left", no_wrap=True)
    for each in rows:
        table.add_row(
            f"{each.k or 'off'} {each.chain}".strip(),
            f"{each.tokens_per_second:,.1f}",
            f"{each.ratio:.2f}",
            f"{each.ratio_whole:.2f}",
            f"{each.tokens_a_step:.2f}",
            " ".join(f"{share:.0%}" for share in each.accepted),
            _number(each.verify_ms),
            _number(each.draft_ms),
            *_break_even(each),
            f"{each.same_answers}",
        )
    console = Console(width=max(Console().width, 130))  # cut to 80 columns, it says nothing
    console.print(table)
    console.print(
        f"{threads} threads, all in one run. ratio: of the seconds after the first token, without\n"
        "drafts over with them; whole: of all seconds, the prompt's too. accepted: share of the\n"
        "drafts that were right, and all before them. verify, draft: a pass of the model over a\n"
        "token and its drafts, and of the MTP layer. pays from: tokens a step that make up for a\n"
        "step's cost, and the acceptance of a draft that gives them. same: answers as without."
    )


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _break_even(each: Row) -> tuple[str, str]:
    if each.k == 0 or each.cost is None:
        return "", ""
    return f"{each.cost:.2f}", "never" if each.acceptance is None else f"{each.acceptance:.0%}"
