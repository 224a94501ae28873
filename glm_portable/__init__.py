"""GLM-4.5, 4.6 and 4.7 on any chip, behind one dispatch interface."""

from glm_portable.errors import UsageError
from glm_portable.glm import GLM

__all__ = ["GLM", "UsageError"]
