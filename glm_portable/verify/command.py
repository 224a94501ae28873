"""`glm-portable verify ...`: judging a backend, a deployment or an endpoint.

Imports of torch, and of all that needs it, are in the commands' bodies.
"""

from typing import Any

import click

from glm_portable.options import Group
from glm_portable.verify import bisect_command, model_command, report, suite
from glm_portable.verify.difference.command import diff
from glm_portable.verify.endpoint.command import endpoint, endpoint_reference
from glm_portable.verify.results import ENVIRONMENT


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


@click.group(cls=VerifyGroup)
def verify() -> None:
    """Judge a backend, a deployment or an endpoint.

    Exit codes: 0 passed, 1 a numeric failure, 2 something is unsupported, 3 it could not be run.
    """


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
    report.main,
):
    verify.add_command(command)
