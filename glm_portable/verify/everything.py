"""What `glm-portable verify` does without a command: every op, then the pocket model."""

from itertools import chain

from glm_portable.ops import Ops
from glm_portable.verify import report
from glm_portable.verify.cases import CASES, small_enough
from glm_portable.verify.model import checks as model
from glm_portable.verify.report import Outputs
from glm_portable.verify.results import Report
from glm_portable.verify.subject import opened
from glm_portable.verify.suite import ops
from glm_portable.virtual import GPUS


def run_everything(machine: Ops, virtual: str | None, outputs: Outputs) -> int:
    """Print every verdict and the report; returns the exit code.

    A simulated GPU executes one instruction after the other: it gets the small cases, and of the
    model's parts the layers.
    """
    slow = virtual is not None and virtual in GPUS
    cases = [case for case in CASES if small_enough(case, 0)] if slow else CASES
    about = report.about(machine) | ({"simulated": virtual} if virtual else {})
    with opened(None, None, "bf16", 0) as subject:
        options = model.Options(parts=("layers",) if slow else model.PARTS)
        streams = chain(
            ops.check(machine, cases, again=not slow), model.checks(machine, subject, options)
        )
        found = list(report.printed(streams, outputs.console, verbose=outputs.verbose))
    return report.finish(Report(f"{machine.name}: ops and model", about, found), outputs)
