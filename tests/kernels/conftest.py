"""Every test of a kernel runs on the machine that --machine names."""

from collections.abc import Iterator

import numpy as np
import pytest

from tests.kernels import machine as machines
from tests.kernels.machine import MACHINES, Machine

SECOND_DIALECT = "interpreter-gfx950"


def pytest_configure(config: pytest.Config) -> None:
    machines.check(config.getoption("machine"))
    config.addinivalue_line("markers", "full: too slow for every change; runs with --full")
    config.addinivalue_line(
        "markers", "fp8: depends on the dialect of FP8; the interpreter runs it in both"
    )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "machine" in metafunc.fixturenames:
        names = MACHINES[metafunc.config.getoption("machine")]
        metafunc.parametrize("machine", names, indirect=True, scope="session")


@pytest.fixture(scope="session")
def machine(request: pytest.FixtureRequest) -> Machine:
    return machines.machine(request.param)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    full = config.getoption("full")
    left_out = [item for item in items if not _wanted(item, full)]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in left_out]


def _wanted(item: pytest.Item, full: bool) -> bool:
    if item.get_closest_marker("full") and not full:
        return False
    callspec = getattr(item, "callspec", None)
    second = callspec is not None and callspec.params.get("machine") == SECOND_DIALECT
    return not second or item.get_closest_marker("fp8") is not None


@pytest.fixture(autouse=True, scope="session")
def numpy_is_silent() -> Iterator[None]:
    """Masked lanes of a kernel may overflow; what they compute is never stored."""
    with np.errstate(all="ignore"):
        yield
