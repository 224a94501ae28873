"""`glm-portable verify model` and `verify golden`: what they are given; `model_run.py` does it."""

from pathlib import Path
from typing import Any

import click

from glm_portable.options import config_option, option, simulate
from glm_portable.verify import report

FORMATS = ("bf16", "fp8", "w8a8")
SMALL = ("glm-4.5-like", "air-like")
PARTS = ("layers", "stream", "paths", "free", "drafts", "greedy", "needles")
format_option = option(
    "--format", "kind", type=click.Choice(FORMATS), default="bf16",
    help="fp8 and w8a8 quantise a plain MODEL as it is read; bf16 is as stored.",
)  # fmt: skip
small_option = option(
    "--small", type=click.Choice(SMALL), help="A small random checkpoint in place of MODEL."
)
seed_option = option(
    "--seed", type=int, default=0, help="Of prompts, and of a small checkpoint's weights."
)


def _parts(_: click.Context, __: click.Parameter, value: str | None) -> tuple[str, ...] | None:
    if value is None:
        return None
    parts = tuple(part.strip() for part in value.split(","))
    if unknown := [part for part in parts if part not in PARTS]:
        raise click.BadParameter(f"{unknown[0]!r} is none of {', '.join(PARTS)}.")
    return parts


def _lengths(_: click.Context, __: click.Parameter, value: str) -> tuple[int, ...]:
    lengths = [length.strip() for length in value.split(",") if length.strip()]
    if not all(length.isdigit() for length in lengths):
        raise click.BadParameter(f"{value!r} must be numbers of tokens such as 512,4096.")
    return tuple(map(int, lengths))


@click.command()
@click.argument("model", required=False, envvar="GLM_PORTABLE_MODEL")
@option("--backend", default="auto", help="The backend to judge.")
@option(
    "--virtual",
    metavar="CHIP",
    callback=simulate,
    help="Simulate a chip, such as gfx942: takes minutes.",
)
@small_option
@format_option
@option("--reference", default="live", metavar="FOLDER|live",
        help="A golden file of MODEL, or the reference beside the backend.")  # fmt: skip
@option("--parts", callback=_parts,
        help=f"Only these of {', '.join(PARTS)}. [default: all, but on a simulated GPU layers]"
        )  # fmt: skip
@option("--prefill", type=click.IntRange(1), default=17, help="layers: tokens in one step.")
@option("--decode", type=click.IntRange(0), default=2, help="layers: tokens one at a time.")
@option("--lengths", callback=_lengths, default="512",
        help="needles: tokens of the long prompts, separated by commas.")  # fmt: skip
@seed_option
@config_option
@report.options
def model(model: str | None, **options: Any) -> None:
    """Compare MODEL (the pocket model) on a backend with the reference, part by part."""
    from glm_portable.verify.model.run import run_model

    raise SystemExit(run_model(model, **options))


@click.command()
@click.argument("model", required=False, envvar="GLM_PORTABLE_MODEL")
@option("--out", type=click.Path(path_type=Path), help="The folder to be made.")
@option("--memory", default="8GiB", help="What this process may take.")
@option("--prompts", default="builtin", metavar="FILE|builtin",
        help="Texts, one a line, or token ids as JSON lists.")  # fmt: skip
@option("--tokens", type=click.IntRange(2), default=64, help="Of a builtin prompt.")
@option("--count", type=click.IntRange(1), default=4, help="Of builtin prompts.")
@option("--size", is_flag=True, help="Only say what it would take, from config.json.")
@small_option
@format_option
@seed_option
@config_option
def golden(model: str | None, **options: Any) -> None:
    """Make a golden file of MODEL, layer by layer: a reference to verify it with elsewhere."""
    from glm_portable.verify.model.run import run_golden

    raise SystemExit(run_golden(model, **options))
