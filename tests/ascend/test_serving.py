"""The real server on a virtual NPU, in a process of its own, with the engine's own thread."""

import subprocess
import sys
from typing import Any

import httpx
import pytest

from glm_portable import GLM
from tests.virtual.test_serving import MAIN, PROMPT, serving

QUESTION: list[dict[str, Any]] = [{"role": "user", "content": "Who are you?"}]
AT_ONCE: dict[str, Any] = {"enable_thinking": False}


@pytest.fixture(autouse=True)
def nobody_set_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without it torch imports torch_npu, which wants CANN; --virtual must see to it."""
    monkeypatch.delenv("TORCH_DEVICE_BACKEND_AUTOLOAD")


@pytest.mark.parametrize(
    ("chip", "ranks"),
    [("Ascend910_9391", ("--tp", "2", "--enable-expert-parallel")), ("Ascend950PR_9599", ())],
)
def test_requests_are_answered(chip: str, ranks: tuple[str, ...]) -> None:
    text = {"prompt": PROMPT, "max_tokens": 4, "temperature": 0}
    chat = {"messages": QUESTION, "max_tokens": 12, "temperature": 0}
    with serving("--backend", "ascend", "--virtual", chip, *ranks) as (url, printed):
        completion = httpx.post(f"{url}/completions", json=text, timeout=300).json()
        body = chat | {"chat_template_kwargs": AT_ONCE}
        answer = httpx.post(f"{url}/chat/completions", json=body, timeout=300).json()
    right = GLM.load(backend="reference", dtype="bfloat16")
    expected = right.generate(PROMPT, max_tokens=4, temperature=0.0)
    assert completion["choices"][0]["text"] == expected.content
    told = right.generate(QUESTION, max_tokens=12, temperature=0.0, chat_template_kwargs=AT_ONCE)
    assert answer["choices"][0]["message"]["content"] == told.content
    assert "GLM" in (told.content or "")
    assert f"{chip} IS SIMULATED" in printed and "does not prove  rounding on the device" in printed


def test_torch_npu_without_cann_is_one_sentence() -> None:
    command = [sys.executable, "-c", MAIN, "generate", "x"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert done.stderr == (
        "Error: torch does not import, since torch_npu does not load (libhccl.so: cannot open "
        "shared object file: No such file or directory): see `glm-portable doctor` for what is "
        "missing, or set TORCH_DEVICE_BACKEND_AUTOLOAD=0 to do without it.\n"
    )
