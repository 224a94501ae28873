"""`glm-portable verify endpoint` and `endpoint-reference`."""

import sys
from pathlib import Path
from typing import Any

import click

from glm_portable.options import config_option, option
from glm_portable.verify.report import Outputs, options


@click.command()
@click.argument("url")
@option(
    "--model",
    envvar="GLM_PORTABLE_SERVED_MODEL",
    help="What requests call the model. [default: the first that it lists]",
)
@option("--api-key", help="Sent as Bearer token.")
@option(
    "--reference",
    metavar="WHAT",
    help="What should be served: a file of endpoint-reference, a checkpoint's folder, pocket, "
    "glm-4.5, glm-4.6 or glm-4.7. [default: by the served name]",
)
@option("--only", help="Groups of checks, separated by commas.")
@option("--quick", is_flag=True, help="A third of the questions, in place of the numbers below.")
@option("--samples", type=int, default=48, help="Tasks asked alone and under load.")
@option("--concurrency", type=int, default=32, help="Requests at once under load.")
@option("--repeats", type=int, default=4, help="How often one request is repeated.")
@option("--longest", type=int, default=32768, help="Tokens of the longest prompt that is sent.")
@option("--tolerance", type=float, default=3.0, help="Times plain BF16's own error allowed.")
@option("--seed", type=int, default=9000, help="Which tasks.")
@option("--timeout", type=float, default=120.0, help="Seconds for one answer.")
@config_option
@options
def endpoint(
    url: str,
    *,
    model: str | None,
    api_key: str | None,
    reference: str | None,
    only: str | None,
    timeout: float,
    quick: bool,
    outputs: Outputs,
    **numbers: Any,
) -> None:
    """Examine the OpenAI-compatible server at URL, which serves a GLM."""
    from glm_portable.verify import report
    from glm_portable.verify.endpoint.client import Client
    from glm_portable.verify.endpoint.exam import QUICK, Settings
    from glm_portable.verify.endpoint.run import GROUPS, about, examine, prepare
    from glm_portable.verify.results import Report

    groups = only.split(",") if only else GROUPS
    settings = QUICK if quick else Settings(**numbers)
    with Client(url, api_key=api_key, timeout=timeout, connections=settings.most) as client:
        exam = prepare(client, model=model, reference=reference, only=groups, settings=settings)
        checks = report.printed(examine(exam, groups), outputs.console, verbose=outputs.verbose)
        found = Report("endpoint", about(exam) | report.about(), list(checks))
    sys.exit(report.finish(found, outputs))


@click.command("endpoint-reference")
@click.argument("model")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@option("--backend", default="auto", help="What computes it.")
@option(
    "--yardstick/--no-yardstick",
    default=True,
    help="Compute in float32, and in BF16 beside it. Without, once in the checkpoint's type.",
)
@config_option
def endpoint_reference(model: str, file: Path, backend: str, yardstick: bool) -> None:
    """Write to FILE what a server of MODEL is compared with: counts, answers, log probabilities.

    MODEL is a folder, an id on a hub, or pocket.
    """
    from glm_portable.verify.endpoint.making import make_file

    name = None if model == "pocket" else model
    reference = make_file(name, file, backend=backend, yardstick=yardstick)
    positions = sum(len(record.positions) for record in reference.recorded)
    click.echo(
        f"Wrote {file}: {len(reference.prompt_tokens)} prompt counts, {len(reference.recorded)} "
        f"answers and {positions} distributions of {reference.name}"
    )
