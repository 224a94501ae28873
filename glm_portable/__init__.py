"""GLM-4.5, 4.6 and 4.7 on any chip, behind one dispatch interface."""

from typing import TYPE_CHECKING, Any

from glm_portable.errors import UsageError

if TYPE_CHECKING:
    from glm_portable.glm import GLM

__all__ = ["GLM", "UsageError"]


def __getattr__(name: str) -> Any:
    """`GLM` when it is first asked for: importing torch takes seconds, and may be what fails."""
    if name != "GLM":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from glm_portable.glm import GLM

    return GLM
