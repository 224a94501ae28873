"""`glm-portable verify diff`."""

import sys

import click

from glm_portable.options import config_option, option
from glm_portable.verify.report import Outputs, options


@click.command()
@click.argument("url1")
@click.argument("url2")
@option(
    "--model",
    envvar="GLM_PORTABLE_SERVED_MODEL",
    help="What requests call the model. [default: the first that each lists]",
)
@option("--api-key", help="Sent to both as Bearer token.")
@option(
    "--alpha",
    type=click.FloatRange(0, 0.5, min_open=True),
    default=0.05,
    help="How often two equal deployments may be told apart.",
)
@option("--max-samples", type=click.IntRange(1), default=400, help="Questions at most.")
@option("--what", default="tasks,numbers", help="tasks (right answers), numbers, or both.")
@option("--seed", type=int, default=20_000, help="Which questions.")
@option("--timeout", type=float, default=120.0, help="Seconds for one answer.")
@config_option
@options
def diff(
    url1: str,
    url2: str,
    *,
    model: str | None,
    api_key: str | None,
    alpha: float,
    max_samples: int,
    what: str,
    seed: int,
    timeout: float,
    outputs: Outputs,
) -> None:
    """Compare the deployments at URL1 and URL2 by a sequential test; exit code 1 if they differ."""
    from glm_portable.verify import report
    from glm_portable.verify.difference.run import difference

    found = difference(
        (url1, url2),
        model=model,
        api_key=api_key,
        alpha=alpha,
        samples=max_samples,
        kinds=tuple(what.split(",")),
        seed=seed,
        timeout=timeout,
        console=outputs.console,
    )
    sys.exit(report.finish(found, outputs))
