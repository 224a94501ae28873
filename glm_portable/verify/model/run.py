"""What `glm-portable verify model` and `verify golden` do."""

import json
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from glm_portable import ops
from glm_portable.config import ModelConfig
from glm_portable.errors import UsageError
from glm_portable.ops import Ops
from glm_portable.tokenizer import Tokenizer
from glm_portable.verify import report
from glm_portable.verify.golden.build import in_folder
from glm_portable.verify.golden.plan import (
    bytes_needed,
    bytes_per_token,
    parse_bytes,
    plan,
    resident_bytes,
    stored_bytes,
)
from glm_portable.verify.golden.record import Golden
from glm_portable.verify.model.checks import PARTS, Options, checks
from glm_portable.verify.report import Outputs
from glm_portable.verify.results import Report
from glm_portable.verify.subject import Subject, opened
from glm_portable.virtual import GPUS, connect

MIB = 2**20


def run_model(
    model: str | None,
    *,
    backend: str,
    virtual: str | None,
    small: str | None,
    kind: str,
    reference: str,
    parts: tuple[str, ...] | None,
    prefill: int,
    decode: int,
    lengths: tuple[int, ...],
    seed: int,
    outputs: Outputs,
) -> int:
    """Print every verdict and the report; returns the exit code. Raises UsageError."""
    golden = None if reference == "live" else Golden.load(Path(reference))
    parts = parts or (("layers",) if virtual in GPUS and golden is None else PARTS)
    options = Options(prefill, decode, parts, golden, lengths)
    with opened(model, small, kind, seed) as subject:
        machine: Ops = ops.load(backend) if virtual is None else connect(backend, virtual)
        stream = checks(machine, subject, options)
        found = list(report.printed(stream, outputs.console, verbose=outputs.verbose))
        about = {"model": subject.name, "format": kind, "parts": ", ".join(parts)}
        about["reference"] = "live, float64" if golden is None else _origin(golden)
        about |= report.about(machine)
        return report.finish(Report("verify model", about, found), outputs)


def _origin(golden: Golden) -> str:
    versions = golden.about["versions"]
    return f"golden file, {golden.about['reference']}, glm-portable {versions['glm-portable']}"


def run_golden(
    model: str | None,
    *,
    out: Path | None,
    memory: str,
    prompts: str,
    tokens: int,
    count: int,
    size: bool,
    small: str | None,
    kind: str,
    seed: int,
) -> int:
    """Make it, or say what it would take; returns the exit code. Raises UsageError."""
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    with opened(model, small, kind, seed) as subject:
        if size:
            console.print(sizes(subject.config, [tokens] * count))
            return 0
        if out is None:
            raise UsageError("--out is missing: name the folder that the golden file shall be.")
        ids, texts = read_prompts(subject, prompts, tokens, count)
        config = subject.config
        quantised = kind != "bf16" or config.quantization is not None
        lengths = [len(one) - 1 for one in ids]
        made = plan(config, lengths, parse_bytes(memory), quantised=quantised)
        kept = str(made.dtype).removeprefix("torch.")
        console.print(
            f"The reference of {subject.name} in {kept}: {sum(lengths)} tokens, at most "
            f"{made.needed / MIB:,.0f} of {made.budget / MIB:,.0f} MiB"
        )
        _make(subject, ids, texts, made.dtype, out, console)
        written = sum(file.stat().st_size for file in out.iterdir())
        console.print(f"Wrote {out}: {written / MIB:,.1f} MiB")
    return 0


def _make(
    subject: Subject,
    ids: list[list[int]],
    texts: list[str] | None,
    dtype: torch.dtype,
    out: Path,
    console: Console,
) -> None:
    columns = (TextColumn("layers"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("", total=None)
        in_folder(
            subject,
            ids,
            dtype,
            out,
            texts,
            lambda done, count: progress.update(task, completed=done, total=count),
        )


def read_prompts(
    subject: Subject, source: str, tokens: int, count: int
) -> tuple[list[list[int]], list[str] | None]:
    """Token ids, and the texts they are of where there are any. Raises UsageError."""
    if source == "builtin":
        return [subject.prompt(tokens + 1, sample) for sample in range(count)], None
    try:
        lines = [line for line in Path(source).read_text(encoding="utf-8").splitlines() if line]
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--prompts {source} cannot be read ({error}).") from None
    if all(line.startswith("[") for line in lines):
        ids, texts = [_ids(line, source, subject.config) for line in lines], None
    else:
        tokenizer = Tokenizer.load(subject.folder, subject.config)
        ids, texts = [tokenizer.encode(line) for line in lines], lines
    if not ids or min(map(len, ids)) < 2:
        raise UsageError(
            f"--prompts {source} must hold prompts of at least two tokens, one a line."
        )
    return ids, texts


def _ids(line: str, source: str, config: ModelConfig) -> list[int]:
    try:
        ids = json.loads(line)
    except ValueError:
        ids = None
    valid = isinstance(ids, list) and all(
        type(i) is int and 0 <= i < config.vocab_size for i in ids
    )
    if not valid:
        raise UsageError(
            f"--prompts {source}: {line[:60]!r} is no list of token ids below {config.vocab_size}."
        )
    return list(ids)


def sizes(config: ModelConfig, lengths: list[int]) -> str:
    """What a golden file of such prompts takes, on disk and in memory while it is made."""
    tokens = sum(lengths)
    quantised = config.quantization is not None
    double, single = (
        (bytes_needed(config, lengths, dtype, quantised) + resident_bytes()) / MIB
        for dtype in (torch.float64, torch.float32)
    )
    return (
        f"{bytes_per_token(config):,} bytes a token: {stored_bytes(config, tokens) / MIB:,.1f} MiB "
        f"for {tokens} tokens in {len(lengths)} prompts; memory while it is made: "
        f"{double:,.0f} MiB in float64, {single:,.0f} MiB in float32"
    )
