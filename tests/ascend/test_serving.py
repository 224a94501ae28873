"""The real server on a virtual NPU, in a process of its own, with the engine's own thread."""

import os

import httpx
import pytest

from glm_portable import GLM
from tests.virtual.test_serving import PROMPT, serving


@pytest.mark.parametrize("chip", ["Ascend910_9391", "Ascend950PR_9599"])
def test_a_request_is_answered(chip: str) -> None:
    assert os.environ["TORCH_DEVICE_BACKEND_AUTOLOAD"] == "0"  # else torch wants CANN at once
    with serving("--backend", "ascend", "--virtual", chip) as (url, printed):
        body = {"prompt": PROMPT, "max_tokens": 8, "temperature": 0}
        answer = httpx.post(f"{url}/completions", json=body, timeout=300).json()
    expected = GLM.load(backend="reference", dtype="bfloat16").generate(
        PROMPT, max_tokens=8, temperature=0.0
    )
    assert answer["choices"][0]["text"] == expected.content
    assert f"{chip} IS SIMULATED" in printed and "does not prove  rounding on the device" in printed
