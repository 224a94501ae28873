"""What must be settled in the environment before triton is imported to compile."""

import os

from glm_portable.errors import UsageError


def settle() -> None:
    """Fix how a * b + c is compiled. Raises UsageError where kernels would be interpreted."""
    if os.environ.get("TRITON_INTERPRET") == "1":
        raise UsageError("TRITON_INTERPRET=1 interprets kernels: unset it to compile them.")
    # What Triton 3.9 does when it is not said; unsaid it warns, and 3.10 would change it.
    os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")
