"""The command `glm-portable bench host`."""

import sys
from pathlib import Path

import click

from glm_portable.options import config_option, option

STEP_MS = 20.0
"""vLLM's GLM-4.6 on eight MI300X gives a single stream 49 to 51 tokens a second (published by
netstatz, not measured here). A step of more sequences takes longer, so its share is overstated."""


@click.command("host")
@option("--sequences", default="1,64,256", help="In one step; separated by commas.")
@option("--input-len", type=int, default=1024, help="Tokens of each prompt.")
@option("--steps", type=int, default=60, help="Decode steps of each measurement.")
@option("--repeats", type=int, default=3, help="Of everything; the medians are printed.")
@option("--step-ms", type=float, default=STEP_MS, help="The model's time to compare with.")
@option("--arithmetic/--no-arithmetic", default=True, help="Also sample on this CPU.")
@option(
    "--json",
    "json_path",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write the seconds here too.",
)
@option(
    "--port",
    type=int,
    help="Measure nothing: serve the model here, each step taking --step-ms, to measure clients.",
)
@config_option
def host(sequences: str, json_path: Path | None, port: int | None, **options: float) -> None:
    """Measure what engine and server cost beside the model: microseconds a decode step.

    The model computes nothing. The step that the shares are of is one of GLM-4.6 on eight MI300X
    at one sequence: 20 ms, from the 49 to 51 tokens a second that were published for vLLM.
    """
    from glm_portable.bench.host.execute import run_bench_host, serve_null

    counts = sequences.split(",")
    if not all(count.strip().isdigit() for count in counts):
        raise click.UsageError(f"--sequences {sequences!r} must be counts such as 1,64.")
    numbers = [int(count) for count in counts]
    if port is not None:
        sys.exit(serve_null(numbers, port, **options))  # type: ignore[arg-type]  # click checked
    run_bench_host(numbers, json_path=json_path, **options)  # type: ignore[arg-type]  # as above
