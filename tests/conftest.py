"""The options of tests/kernels; pytest reads them here, before it looks for tests."""

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("kernels", "tests/kernels")
    group.addoption(
        "--machine",
        default="interpreter",
        metavar="NAME",
        help="what runs the kernels: interpreter (Triton's, needs TRITON_INTERPRET=1), gfx942 or "
        "gfx950 (simulated machine code), gpu (the one torch sees)",
    )
    group.addoption(
        "--full", action="store_true", help="also the cases that are too slow for every change"
    )
