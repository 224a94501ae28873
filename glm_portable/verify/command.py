"""`glm-portable verify ...`: judging a backend, a deployment or an endpoint.

Imports of torch, and of all that needs it, are in the commands' bodies.
"""

import click

from glm_portable.options import Group, config_option, option


@click.group(cls=Group)
def verify() -> None:
    """Judge a backend, a deployment or an endpoint. Exit codes: 0 pass, 1 fail, 2 unsupported."""


@verify.command()
@click.argument("model", required=False, envvar="GLM_PORTABLE_MODEL")
@option("--backend", default="auto", help="The backend to judge.")
@option("--virtual", metavar="CHIP", help="Simulate a chip, such as gfx942: takes minutes.")
@option("--small", type=click.Choice(["glm-4.5-like", "air-like"]),
        help="A small random checkpoint in place of MODEL.")  # fmt: skip
@option("--format", "kind", type=click.Choice(["bf16", "fp8", "w8a8"]), default="bf16",
        help="fp8 and w8a8 quantise a plain MODEL while loading it.")  # fmt: skip
@option("--prefill", type=click.IntRange(1), default=17, help="Tokens of a prompt in one step.")
@option("--decode", type=click.IntRange(0), default=2, help="Tokens one at a time, after these.")
@option("--seed", type=int, default=0, help="Of prompts, and of a small checkpoint's weights.")
@config_option
def model(model: str | None, **options: object) -> None:
    """Compare MODEL (the pocket model) on a backend with the reference, part by part."""
    from glm_portable.verify.run import run_model

    raise SystemExit(run_model(model, **options))
