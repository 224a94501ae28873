"""`glm-portable verify ...`: judging a backend, a deployment or an endpoint.

Imports of torch, and of all that needs it, are in the commands' bodies.
"""

import sys
from typing import Any

import click
from click.core import ParameterSource

from glm_portable.options import Group
from glm_portable.verify import report
from glm_portable.verify.bisect import command as bisect_command
from glm_portable.verify.difference.command import diff
from glm_portable.verify.endpoint.command import endpoint, endpoint_reference
from glm_portable.verify.faults.command import faults
from glm_portable.verify.model import command as model_command
from glm_portable.verify.report import Outputs
from glm_portable.verify.results import ENVIRONMENT
from glm_portable.verify.suite import command as suite


class Unusable(click.UsageError):
    """Options that make no sense."""

    exit_code = ENVIRONMENT


class VerifyGroup(Group):
    """2 means "unsupported" here: what cannot be run at all, options included, is 3."""

    exit_code = ENVIRONMENT

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command that was asked for."""
        try:
            return super().invoke(ctx)
        except click.UsageError as error:
            raise Unusable(error.format_message(), error.ctx) from error


@click.group(cls=VerifyGroup, invoke_without_command=True)
@suite.backend_option
@suite.virtual_option
@report.options
@click.pass_context
def verify(ctx: click.Context, backend: str, virtual: str | None, outputs: Outputs) -> None:
    """Judge a backend, a deployment or an endpoint.

    Without a command: every op of the backend, then the pocket model on it.

    Exit codes: 0 passed, 1 a numeric failure, 2 something is unsupported, 3 it could not be run.
    """
    if ctx.invoked_subcommand is None:
        from glm_portable.verify.everything import run_everything

        sys.exit(run_everything(suite.connect(backend, virtual), virtual, outputs))
    for parameter in ctx.command.params:
        if ctx.get_parameter_source(parameter.name or "") is ParameterSource.COMMANDLINE:
            raise Unusable(
                f"{parameter.opts[0]} belongs behind {ctx.invoked_subcommand}, not before it.", ctx
            )


for command in (
    suite.ops,
    suite.make,
    model_command.model,
    model_command.golden,
    bisect_command.bisect,
    bisect_command.replay,
    endpoint,
    endpoint_reference,
    diff,
    faults,
    report.main,
    report.table,
):
    verify.add_command(command)
