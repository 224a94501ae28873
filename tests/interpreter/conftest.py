"""These tests interpret kernels; a process either interprets or compiles, never both."""

import os

import pytest

if os.environ.get("TRITON_INTERPRET") != "1":
    raise pytest.UsageError(
        "tests/interpreter needs a process of its own: run "
        "TRITON_INTERPRET=1 pytest tests/interpreter, and the others with "
        "--ignore=tests/interpreter (make test does both)."
    )
