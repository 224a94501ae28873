"""The bodies of `verify bisect` and `verify replay`: what a person sees of them."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text

from glm_portable import hub, ops, pocket
from glm_portable.checkpoint import Checkpoint
from glm_portable.config import ModelConfig
from glm_portable.errors import UsageError
from glm_portable.ops import Ops
from glm_portable.tasks import generate
from glm_portable.tokenizer import Tokenizer
from glm_portable.verify.bisect import Bisection, Fault
from glm_portable.verify.explain import headline, numbers, why
from glm_portable.verify.model import FORMATS
from glm_portable.verify.op_rule import Judged
from glm_portable.verify.report import Outputs, about, write
from glm_portable.verify.reproducer import Replayed, folder_name, machine, save
from glm_portable.verify.reproducer import replay as replay_folder
from glm_portable.verify.results import FAILED, PASSED, Check, Report, Status
from glm_portable.verify.scenario import Scenario, usual_tokens
from glm_portable.verify.sweep import Machine, PartSeen, Side, Sweep

DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}
WHOLE_BYTES = 4e9
"""Models up to here are run whole at the end, unless that was settled."""


HEADINGS = (
    "part", "A's error", "B's", "allowed", "B's slope", "B's flips", "B free", "allowed", "",
)  # fmt: skip
"""Errors on the input that A's part had; "free": behind the parts before it on B itself."""


def run_bisect(
    a: str,
    b: str,
    *,
    outputs: Outputs,
    model: str | None,
    kind: str,
    dtype: str,
    prefill: int,
    page_size: int | None,
    seed: int,
    every_op: bool,
    quick: bool,
    whole: bool | None,
    out: Path | None,
) -> int:
    """Print what is found as it is found; returns the exit code. Raises UsageError."""
    path = pocket.FOLDER if model is None else hub.resolve(model, None)
    name = "glm-pocket" if model is None else model
    machines = {"a": machine(a), "b": machine(b)}
    labels = {"a": a, "b": b if a != b else f"{b} (the second)"}
    config = ModelConfig.load(path)
    chosen = DTYPES.get(config.dtype if dtype == "auto" else dtype, torch.bfloat16)
    ids = prompt(path, config, usual_tokens(prefill), seed)
    scenario = Scenario.usual(ids, prefill, page_size or machines["b"].page_size)
    sweep = make_sweep(path, config, scenario, kind, chosen, machines, labels)
    if whole is None:
        whole = sweep.b.weights.loaded_bytes(None) <= WHOLE_BYTES
    bisection = Bisection(sweep, every_op, quick, whole)
    console = outputs.console
    tokens = sum(n for step in scenario.steps for _, _, n in step)
    console.print(
        f"{name} in {kind}, {labels['a']} against {labels['b']}: {tokens} tokens in "
        f"{len(scenario.steps)} steps, pages of {scenario.page_size}",
        markup=False,
    )
    begin = time.monotonic()
    console.print(parts_table(console, bisection, labels))
    seconds = time.monotonic() - begin
    folders = save_all(bisection.faults, out or Path(f"bisect-{a}-{b}"), labels, machines, name)
    say(console, bisection, labels, folders, seconds)
    title = f"verify bisect {a} {b}"
    said = {"model": name, **_about(labels, machines)}
    found = Report(title, said, list(checks(bisection, labels, folders)))
    write(found, json=outputs.json, junit=outputs.junit, html=outputs.html, badge=outputs.badge)
    return FAILED if bisection.faults else PASSED


def make_sweep(
    path: Path,
    config: ModelConfig,
    scenario: Scenario,
    kind: str,
    dtype: torch.dtype,
    machines: Mapping[str, Ops],
    labels: Mapping[str, str],
) -> Sweep:
    """Both backends, and the reference in their type and in float64, on one checkpoint."""
    reference = ops.load("reference")

    def on(label: str, backend: Ops, dtype: torch.dtype) -> Machine:
        weights: Checkpoint = FORMATS[kind](path, config, dtype=dtype, device=backend.device)
        return Machine(label, backend, weights)

    return Sweep(
        on(labels["a"], machines["a"], dtype),
        on(labels["b"], machines["b"], dtype),
        on("plain PyTorch", reference, dtype),
        on("float64", reference, torch.float64),
        config,
        scenario,
    )


def prompt(path: Path, config: ModelConfig, count: int, seed: int) -> list[int]:
    """Conversations such as the pocket model knows; random tokens where there is no tokenizer."""
    if not (path / "tokenizer.json").exists():
        generator = torch.Generator().manual_seed(seed)
        return torch.randint(config.vocab_size, (count,), generator=generator).tolist()
    tokenizer = Tokenizer.load(path, config)
    ids: list[int] = []
    sample = 0
    while len(ids) < count:
        ids += tokenizer.encode(str(generate(seed, sample).messages))
        sample += 1
    return ids[:count]


def parts_table(console: Console, bisection: Bisection, labels: Mapping[str, str]) -> Table:
    """Runs the bisection; a row for every part."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for heading in HEADINGS:
        left = heading in ("part", "")
        table.add_column(heading, justify="left" if left else "right", no_wrap=not left)
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
    flips = f"{b.explained} explained" if b.explained else "none"
    return [
        seen.name, f"{a.worst.error:.3g}", f"{b.worst.error:.3g}", f"{b.allowed:.3g}",
        f"{b.worst.slope:.4f}", f"{b.unexplained} UNEXPLAINED" if b.unexplained else flips,
        f"{free.worst.error:.3g}", f"{free.allowed:.3g}", "; ".join(words) or "ok",
    ]  # fmt: skip


def save_all(
    faults: Sequence[Fault],
    out: Path,
    labels: Mapping[str, str],
    machines: Mapping[str, Ops],
    model: str,
) -> dict[int, tuple[Path, bool]]:
    """A reproducer for every fault that a call shows: its folder, and whether it fails alone."""
    folders: dict[int, tuple[Path, bool]] = {}
    for i, fault in enumerate(faults):
        if fault.evidence is not None:
            path = out / folder_name(fault, [p.name for p, _ in folders.values()])
            folders[i] = path, save(path, fault, labels, machines, model)
    return folders


def say(
    console: Console,
    bisection: Bisection,
    labels: dict[str, str],
    folders: Mapping[int, tuple[Path, bool]],
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
    calls = sum(bisection.opened.values())
    count = len(bisection.faults)
    looked = f"{len(bisection.parts)} parts, {calls} calls of ops in {len(bisection.opened)} parts"
    verdict = f"{count} fault{'s' * (count != 1)} found" if count else "nothing found"
    line(f"{verdict}: {looked}, {seconds:.1f} s", "bold red" if count else "bold green")


def checks(
    bisection: Bisection, labels: Mapping[str, str], folders: Mapping[int, tuple[Path, bool]]
) -> Iterator[Check]:
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
            evidence.judged.measures() if evidence else {},
            kernels=evidence.kernels if evidence else {},
            note=f"reproducer: {folders[i][0]}" if i in folders else "",
        )


def _check(level: str, part: str, name: str, judged: Judged) -> Check:
    status = Status.FAIL if judged.findings else Status.PASS
    return Check(level, part, name, status, judged.findings, judged.measures())


def _about(labels: Mapping[str, str], machines: Mapping[str, Ops]) -> dict[str, str]:
    a, b = about(machines["a"]), about(machines["b"])
    own = {f"A {k}": v for k, v in a.items() if b.get(k) != v}
    return {"A": labels["a"], "B": labels["b"], **own, **b}


def run_replay(path: Path, backend: str | None, chip: str | None) -> int:
    """Print then and now; returns the exit code. Raises UsageError."""
    try:
        found = replay_folder(path, backend, chip)
    except (KeyError, TypeError) as error:
        raise UsageError(f"{path} is damaged ({type(error).__name__}: {error}).") from None
    console = Console(highlight=False)
    console.print(then_and_now(found))
    said = found.stored.about
    for finding in found.now.findings:
        console.print(Text(f"  {finding}"))
    if found.now.findings:
        console.print(Text(f"STILL WRONG on {found.backend}: {said['where']}", style="bold red"))
        return FAILED
    console.print(Text(f"right on {found.backend}: {said['where']}", style="bold green"))
    if found.backend == said["backends"][said["wrong"]] and not said["alone"]["findings"]:
        console.print(Text("It was right alone then, too: in the model, what ran before matters."))
    return PASSED


def then_and_now(found: Replayed) -> Table:
    """Numbers of the model's run, of the same call alone, and of now."""
    said = found.stored.about
    wrong = said["backends"][said["wrong"]]
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for heading in ("", f"{wrong}, in the model", f"{wrong}, alone then", f"{found.backend}, now"):
        table.add_column(heading)
    columns: list[Mapping[str, Any]] = [
        said["numbers"], said["alone"]["numbers"], found.now.measures()
    ]  # fmt: skip
    for name in found.now.measures():
        table.add_row(name.replace("_", " "), *(f"{float(c[name]):.5g}" for c in columns))
    return table
