"""Reports of `verify`: in the terminal, as JSON, JUnit XML and one HTML page, as a badge."""

from glm_portable.verify.report.badges import badge
from glm_portable.verify.report.command import Outputs, finish, main, options, table
from glm_portable.verify.report.environment import about
from glm_portable.verify.report.files import write
from glm_portable.verify.report.stored import read
from glm_portable.verify.report.table import printed, show

__all__ = [
    "Outputs", "about", "badge", "finish", "main", "options", "printed", "read", "show", "table",
    "write",
]  # fmt: skip
