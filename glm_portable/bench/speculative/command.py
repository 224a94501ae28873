"""The command `glm-portable bench speculative`."""

from pathlib import Path
from typing import Any

import click

from glm_portable.options import config_option, option


@click.command("speculative")
@click.argument("model", required=False, envvar="GLM_PORTABLE_MODEL")
@option("--backend", default="auto", help="The backend to measure.")
@option(
    "--dtype",
    type=click.Choice(["bfloat16", "float32"]),
    default="bfloat16",
    help="Of weights and activations.",
)
@option("--revision", help="Branch, tag or commit, for a MODEL on a hub.")
@option("--threads", type=int, default=0, help="0 for torch's choice.")
@option(
    "--processor-time",
    is_flag=True,
    help="Of one thread, instead of time: for a machine that does other things meanwhile.",
)
@option("--most", type=click.IntRange(1, 5), default=5, help="Measure 1 to so many drafts.")
@option("--batch", type=click.IntRange(1), default=1, help="Questions answered at once.")
@option("--questions", type=click.IntRange(1), default=8, help="How many to answer.")
@option("--max-tokens", type=click.IntRange(8), default=64, help="Most tokens of an answer.")
@option(
    "--repeats", type=click.IntRange(1), default=5, help="Repetitions, of which the median counts."
)
@option(
    "--chain-questions",
    type=click.IntRange(0),
    default=0,
    help="Compare on so many what is accepted if second drafts are made in either way.",
)
@option(
    "--json",
    "json_path",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write the figures here too.",
)
@config_option
def speculative(model: str | None, **options: Any) -> None:
    """Measure decoding with 1 to 5 drafts of the MTP layer beside decoding without.

    Questions are the held-out ones of `evaluate`, answered greedily; for a checkpoint without a
    tokenizer they are random tokens, and only the costs mean something.
    """
    from glm_portable.bench.speculative.run import run_bench

    run_bench(model, **options)
