"""Every fault there is, in the order of the table."""

from glm_portable.errors import UsageError
from glm_portable.verify.faults.attention import ATTENTION
from glm_portable.verify.faults.behaviour import BEHAVIOUR
from glm_portable.verify.faults.fault import Fault
from glm_portable.verify.faults.linear import LINEAR
from glm_portable.verify.faults.mixture import MIXTURE
from glm_portable.verify.faults.model import AROUND
from glm_portable.verify.faults.norm import NORM
from glm_portable.verify.faults.pages import PAGES
from glm_portable.verify.faults.results import RESULTS
from glm_portable.verify.faults.rope import ROPE
from glm_portable.verify.faults.router import ROUTER
from glm_portable.verify.faults.weights import WEIGHTS

FAULTS: tuple[Fault, ...] = (
    *RESULTS, *LINEAR, *WEIGHTS, *MIXTURE, *ROUTER, *NORM, *ROPE, *PAGES, *ATTENTION, *BEHAVIOUR,
    *AROUND,
)  # fmt: skip


def named(pattern: str | None) -> list[Fault]:
    """The faults whose name has this in it; all if None. Raises UsageError if there are none."""
    found = [fault for fault in FAULTS if pattern is None or pattern in fault.name]
    if not found:
        raise UsageError(f"no fault has {pattern!r} in its name; `verify faults --list` shows all.")
    return found
