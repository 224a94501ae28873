"""Reports of `verify`: in the terminal and as JSON."""

from glm_portable.verify.report.files import write
from glm_portable.verify.report.stored import read
from glm_portable.verify.report.table import printed, show

__all__ = ["printed", "read", "show", "write"]
