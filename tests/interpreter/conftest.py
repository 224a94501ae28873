"""These tests interpret the kernels; a process either interprets or compiles, never both."""

import os
from collections.abc import Iterator

import pytest

if os.environ.get("TRITON_INTERPRET") != "1":
    raise pytest.UsageError(
        "tests/interpreter needs a process of its own: run "
        "TRITON_INTERPRET=1 pytest tests/interpreter, and the others with "
        "--ignore=tests/interpreter (make test does both)."
    )


@pytest.fixture(autouse=True, scope="session")
def numpy_is_silent() -> Iterator[None]:
    """Masked lanes of a kernel may overflow; what they compute is never stored."""
    import numpy as np

    with np.errstate(all="ignore"):
        yield
