"""`glm-portable bench ...`: speed of a model here, of a server, and of the engine around a model.

Imports of torch, and of all that needs it, are in the commands' bodies.
"""

from pathlib import Path
from typing import Any

import click

from glm_portable.bench.host.command import host
from glm_portable.bench.serve.command import serve
from glm_portable.bench.soak.command import soak
from glm_portable.bench.speculative.command import speculative
from glm_portable.options import Group, config_option, option


class BenchGroup(Group):
    """`bench MODEL` is short for `bench model MODEL`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if not args or (args[0] not in self.commands and args[0] not in ctx.help_option_names):
            args = ["model", *args]
        return super().parse_args(ctx, args)


@click.group(cls=BenchGroup)
def bench() -> None:
    """Measure a model (`bench MODEL`), a server (`serve`, `soak`), the host's part, or drafting.

    `bench MODEL` is short for `bench model MODEL`; `bench model --help` has its options.
    """


@click.command("model")
@click.argument("model", required=False, envvar="GLM_PORTABLE_MODEL")
@option("--backend", default="auto", help="The backend to measure.")
@option("--dtype", default="bfloat16", help="bfloat16 or float32.")
@option("--revision", help="Branch, tag or commit, for a MODEL on a hub.")
@option("--threads", type=int, default=0, help="0 for torch's choice.")
@option("--prefill", type=int, default=512, help="Tokens of the prompt that is timed.")
@option("--batches", default="1,8", help="Sequences decoded at once, separated by commas.")
@option("--steps", type=int, default=16, help="Decode steps a repetition.")
@option("--repeats", type=int, default=7, help="Repetitions, of which the median counts.")
@option(
    "--against",
    type=click.Choice(["transformers", "deterministic", "none"]),
    default="transformers",
    help="What to measure beside it; deterministic: under --enable-deterministic-inference.",
)
@option(
    "--json",
    "json_path",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write the figures here too.",
)
@config_option
def model_command(model: str | None, batches: str, **options: Any) -> None:
    """Measure speed, load time and memory, with transformers and this machine's limits beside."""
    from glm_portable.bench import run_bench

    counts = batches.split(",")
    if not all(count.strip().isdigit() and int(count) > 0 for count in counts):
        raise click.UsageError(f"--batches {batches!r} must be counts such as 1,8.")
    run_bench(model, batches=[int(count) for count in counts], **options)


for command in (model_command, serve, soak, host, speculative):
    bench.add_command(command)
