"""python -m glm_portable.verify.model: a whole model on one backend against the reference.

    python -m glm_portable.verify.model --virtual gfx942 --format fp8

runs a prompt in one prefill and some decode steps through the backend and through the reference in
float64, and says part by part how far apart they are; plain PyTorch in the backend's type is the
yardstick (see metrics). Exit code 1 if anything is out of the rule.
"""

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import click
import torch
from torch import Tensor

from glm_portable import hub, ops, pocket
from glm_portable.checkpoint import Checkpoint
from glm_portable.config import ModelConfig
from glm_portable.errors import UsageError
from glm_portable.model import Model
from glm_portable.ops import Ops
from glm_portable.tasks import generate
from glm_portable.tokenizer import Tokenizer
from glm_portable.verify.layers import Compared, Runner, compare, runner
from glm_portable.verify.metrics import FLOOR, K
from glm_portable.verify.quantised import QuantisedCheckpoint
from glm_portable.virtual import connect

FORMATS = {"bf16": Checkpoint, "fp8": QuantisedCheckpoint}
HEADINGS = (
    "part", "tokens", "error", "allowed", "slope", "experts: same", "explained", "unexplained",
    "KL mean", "KL max", "plain KL mean", "same top", "",
)  # fmt: skip


@click.command()
@click.argument("model", required=False)
@click.option("--backend", default="auto", show_default=True)
@click.option("--virtual", metavar="CHIP", help="A chip to simulate: gfx942 or gfx950.")
@click.option("--format", "kind", type=click.Choice(list(FORMATS)), default="bf16",
              show_default=True, help="fp8 quantises a plain MODEL while loading it.")  # fmt: skip
@click.option("--prefill", default=17, show_default=True, type=click.IntRange(1))
@click.option("--decode", default=2, show_default=True, type=click.IntRange(0))
def main(
    model: str | None, backend: str, virtual: str | None, kind: str, prefill: int, decode: int
) -> None:
    """Compare MODEL (the pocket model) on a backend with the reference, layer by layer."""
    try:
        found = run(model, backend, virtual, kind, prefill, decode)
    except UsageError as error:
        raise click.UsageError(str(error)) from error
    sys.exit(1 if found else 0)


def run(
    model: str | None, backend: str, virtual: str | None, kind: str, prefill: int, decode: int
) -> list[str]:
    """Print the table and what ran; returns the findings."""
    folder = pocket.FOLDER if model is None else hub.resolve(model, None)
    ids = prompt(folder, prefill + decode + 1)
    machine = ops.load(backend) if virtual is None else connect(backend, virtual)
    ours, plain, exact = runners(folder, machine, kind)
    print(
        f"{'glm-pocket' if model is None else model} in {kind} on {machine.name}: {prefill} tokens "
        f"of prefill, {decode} decode steps"
    )
    parts = []
    print(_line(HEADINGS), _line(["---"] * len(HEADINGS)), sep="\n")
    for part in compare(ours, plain, exact, ids, decode):
        print(_line(row(part)), flush=True)
        parts.append(part)
    print(f"kernels seen to run: {_counts(ours.watched.kernels.items())}")
    print(f"matrix products of torch: {_counts(ours.watched.products.items())}")
    found = [finding for part in parts for finding in part.findings]
    if not ours.watched.kernels and virtual is not None:
        found.append("no kernel was seen to run")
    for finding in found:
        print(f"finding: {finding}")
    print(f"{len(parts)} parts compared, {len(found)} findings.")
    return found


def runners(folder: Path, machine: Ops, kind: str) -> tuple[Runner, Runner, Runner]:
    """The same checkpoint on the machine, on the reference in its type, and in float64."""
    config, reference = ModelConfig.load(folder), ops.load("reference")

    def load(dtype: torch.dtype, backend: Ops) -> Model:
        weights = FORMATS[kind](folder, config, dtype=dtype, device=backend.device)
        return Model(config, backend, weights)

    return (
        runner(lambda watched: load(torch.bfloat16, watched), machine, counts=True),
        runner(lambda watched: load(torch.bfloat16, watched), reference),
        runner(lambda watched: load(torch.float64, watched), reference),
    )


def prompt(folder: Path, count: int) -> list[int]:
    """So many tokens of conversations of the kind that the pocket model knows."""
    tokenizer = Tokenizer.load(folder, ModelConfig.load(folder))
    ids: list[int] = []
    sample = 0
    while len(ids) < count:
        ids += tokenizer.encode(str(generate(11, sample).messages))
        sample += 1
    return ids[:count]


def row(part: Compared) -> Sequence[str]:
    """Cells of HEADINGS."""
    allowed = K * part.plain.error + FLOOR
    cells = [part.part, str(part.tokens), f"{part.ours.error:.3g}", f"{allowed:.3g}"]
    cells.append(f"{part.ours.slope:.5f}")
    if part.flips is None:
        cells += ["", "", ""]
    else:
        flipped, wrong = (int(t.sum()) for t in (part.flips.flipped_T, part.flips.unexplained_T))
        same = len(part.flips.flipped_T) - flipped
        cells += [str(same), str(flipped - wrong), str(wrong)]
    if part.kl is None or part.plain_kl is None:
        cells += ["", "", "", ""]
    else:
        cells += [_kl(part.kl.mean()), _kl(part.kl.max()), _kl(part.plain_kl.mean())]
        cells.append(f"{part.same_top} of {part.tokens}")
    return [*cells, "FAILS" if part.findings else "ok"]


def _kl(value: Tensor) -> str:
    return f"{value.item():.2g}"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _counts(items: Iterable[tuple[str, int]]) -> str:
    return ", ".join(f"{name} x {n}" for name, n in sorted(items)) or "none"


if __name__ == "__main__":
    main(prog_name="python -m glm_portable.verify.model")
