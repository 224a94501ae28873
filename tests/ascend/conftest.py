"""These tests need torch_npu, in an environment of its own: `make test-ascend`."""

import importlib.util
import os

os.environ.setdefault("TORCH_DEVICE_BACKEND_AUTOLOAD", "0")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # products this small wait for threads, mostly

import pytest

from glm_portable.backends.ascend import AscendOps
from glm_portable.virtual import NPUS, npu


@pytest.fixture(autouse=True, scope="session")
def torch_npu_is_here() -> None:
    if importlib.util.find_spec("torch_npu") is None:
        pytest.skip("torch_npu is not installed here; `make test-ascend` runs these tests with it")


@pytest.fixture(params=NPUS)
def ops(request: pytest.FixtureRequest) -> AscendOps:
    """The backend on each virtual chip."""
    return npu.connect(request.param)


@pytest.fixture
def a3() -> AscendOps:
    return npu.connect("Ascend910_9391")
