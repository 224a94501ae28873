"""What pytest reads before it looks for tests: the options of tests/kernels, and hypothesis'.

No test is timed: on a busy machine any example may take seconds, and so may making it.
"""

from importlib.util import find_spec

import pytest

if find_spec("hypothesis"):  # tests/ascend and its environment do without
    from hypothesis import HealthCheck, settings

    slow = [HealthCheck.too_slow]
    settings.register_profile("untimed", deadline=None, suppress_health_check=slow)
    settings.load_profile("untimed")


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
