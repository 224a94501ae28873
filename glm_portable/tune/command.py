"""The command: what to search, where it goes, and what a person sees of it."""

import datetime
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import torch

from glm_portable import hub, ops
from glm_portable.config import ModelConfig
from glm_portable.errors import UsageError
from glm_portable.kernels import tiles, tuned_lines
from glm_portable.kernels.target import Target, versions
from glm_portable.kernels.tuned_lines import DTYPES, Line
from glm_portable.tune.clock import DeviceClock
from glm_portable.tune.problem import Machine, Problem
from glm_portable.tune.search import Outcome, Search, line
from glm_portable.tune.shapes import PUBLISHED, Model, jobs, shapes

NAMES = {"bf16": "bfloat16", "bfloat16": "bfloat16", "fp8": "fp8", "w8a16": "w8a16"}
HEADINGS = ("product", "E", "N", "K", "tile found", "us", "rule's us", "ratio", "tiles right")


def run_tune(
    model: str | None,
    *,
    backend: str,
    tp: str,
    ep: str,
    tokens: str,
    dtype: str,
    output: Path | None,
    budget: float | None,
    force: bool,
) -> int:
    """Measure, print a table, and write lines as they are found; returns how many. Raises
    UsageError for bad options and where there is no GPU to measure on."""
    wanted = [Model.of(model, ModelConfig.load(hub.resolve(model, None)))] if model else PUBLISHED
    all_shapes = [s for m in wanted for s in shapes(m, counts("tp", tp), counts("ep", ep))]
    pairs = list(jobs(all_shapes, dtypes(dtype), counts("tokens", tokens)))
    if not pairs:
        raise UsageError("nothing to measure: give --tp, --ep or both.")
    machine = connect(backend)
    path = (output or tiles.TABLES) / f"{machine.target.arch}.json"
    source = {
        "device": str(torch.get_device_module(machine.device).get_device_name(machine.device)),
        **versions(),
        "date": datetime.date.today().isoformat(),
    }
    search = Search(
        machine.target,
        lambda job: Problem(job, machine),
        DeviceClock(machine.device),
        {} if force else known(path, machine.target, source),
    )
    end = float("inf") if budget is None else time.monotonic() + budget
    print(f"Tuning for {machine.target.arch} ({source['device']}): {2 * len(pairs)} products")
    found = measure(search, pairs, path, source, lambda: time.monotonic() > end)
    print(f"{found} lines written to {path}")
    return found


def measure(
    search: Search,
    pairs: Sequence[Any],
    path: Path,
    source: dict[str, Any],
    time_is_up: Callable[[], bool],
) -> int:
    """Run the search, print each outcome and put it into the file at once."""
    print(_row(HEADINGS), _row(["---"] * len(HEADINGS)), sep="\n")
    written = done = 0
    for outcome in search.run(pairs, time_is_up):
        print(_row(cells(outcome)), flush=True)
        for sentence in outcome.wrong:
            print(f"wrong result, left out: {sentence}")
        done += 1
        if not outcome.skipped:
            old = tiles.read(path, search.target) if path.is_file() else ()
            tuned_lines.write(path, tuned_lines.merged(old, [line(outcome, source)]))
            written += 1
    if left := 2 * len(pairs) - done:
        print(f"{left} products are left; run the command again to go on.")
    return written


def connect(backend: str) -> Machine:
    """The backend of the GPU that is here. Raises UsageError for one that has no tiles."""
    machine = ops.load(backend)
    if not hasattr(machine, "target") or machine.device.type == "cpu":
        raise UsageError(
            f"backend {machine.name!r} has no tiles to tune; run tune on a machine with a GPU, "
            "with the --backend of its vendor."
        )
    return cast(Machine, machine)


def known(
    path: Path, target: Target, source: dict[str, Any]
) -> dict[tuple[int, int, int, str, int], Line]:
    """Lines that need no second measurement: found with the same versions."""
    lines = tiles.read(path, target) if path.is_file() else ()
    same = versions().keys()
    return {x.key: x for x in lines if all(x.source[k] == source.get(k) for k in same)}


def counts(name: str, text: str) -> list[int]:
    """Positive numbers separated by commas; none for an empty text."""
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise UsageError(f"--{name} {text!r} must be numbers such as 1,8.")
    return [int(part) for part in parts]


def dtypes(text: str) -> list[str]:
    """Names of tuned_lines.DTYPES."""
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if unknown := [part for part in parts if part not in NAMES]:
        raise UsageError(f"--dtype {unknown[0]!r} is not one of {', '.join(NAMES)}.")
    found = [NAMES[part] for part in parts]
    assert set(found) <= set(DTYPES)
    return found


def cells(outcome: Outcome) -> Sequence[str]:
    """Cells of HEADINGS."""
    job, tile = outcome.job, outcome.best
    sizes = "x".join(str(n) for n in (tile.block_m, tile.block_n, tile.block_k))
    options = " ".join(f"{k}={v}" for k, v in tile.options.items())
    first = [str(job), str(job.shape.experts), str(job.n), str(job.k), f"{sizes} {options}"]
    if outcome.skipped:
        return [*first, "", "", "", "measured before"]
    return [
        *first,
        f"{outcome.best_us:.1f}",
        f"{outcome.rule_us:.1f}",
        f"{outcome.rule_us / outcome.best_us:.2f}",
        f"{outcome.measured} of {outcome.measured + len(outcome.wrong) + len(outcome.refused)}",
    ]


def _row(items: Sequence[str]) -> str:
    return f"| {' | '.join(items)} |"
