"""The real server on a simulated chip: one short request through machine code."""

import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any

import httpx
import pytest

from glm_portable import virtual
from glm_portable.errors import UsageError
from glm_portable.glm import GLM

PROMPT = [40, 596, 220, 918]  # "I am GLM": the next two tokens win by a margin
MAIN = "from glm_portable.cli import main; main()"


@contextmanager
def serving(*arguments: str) -> Iterator[tuple[str, str]]:
    """(URL, what was printed before it) of a server process."""
    command = [sys.executable, "-c", MAIN, "serve", "--port", "0", *arguments]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        printed = _until(process.stderr, "Serving ")
        found = re.search(r"http://\S+/v1", printed)
        assert found, printed
        yield found.group(), printed
    finally:
        process.terminate()
        assert process.wait(60) == 0


def _until(lines: IO[str], word: str) -> str:
    printed = ""
    for line in lines:
        printed += line
        if word in line:
            return printed
    raise AssertionError(f"the server ended: {printed}")


def test_a_request_is_answered_by_simulated_machine_code() -> None:
    with serving("--backend", "rocm", "--virtual", "gfx942") as (url, printed):
        body: dict[str, Any] = {"prompt": PROMPT, "max_tokens": 2, "temperature": 0}
        answer = httpx.post(f"{url}/completions", json=body, timeout=300).json()
    expected = GLM.load(backend="reference", dtype="bfloat16").generate(
        PROMPT, max_tokens=2, temperature=0.0
    )
    assert answer["choices"][0]["text"] == expected.content
    assert answer["usage"]["completion_tokens"] == 2
    assert "gfx942 IS SIMULATED" in printed and "does not prove  speed" in printed
    assert "on rocm on a simulated gfx942" in printed
    assert "up to 4 sequences at once" in printed


def test_the_chips_are_those_of_the_simulator() -> None:
    from glm_portable.virtual import cdna

    assert set(virtual.GPUS) == set(cdna.CHIPS)


@pytest.mark.parametrize(
    ("backend", "chip", "message"),
    [
        ("rocm", "gfx90a", "no chip 'gfx90a' can be simulated; use one of gfx942, gfx950"),
        ("cpu", "gfx942", "backend 'cpu' has no simulated gfx942; use --backend rocm"),
        ("cuda", "gfx950", "backend 'cuda' has no simulated gfx950; use --backend rocm"),
    ],
)
def test_what_cannot_be_simulated_is_refused(backend: str, chip: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        GLM.load(backend=backend, virtual=chip)


def test_an_interpreting_process_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with pytest.raises(UsageError, match="TRITON_INTERPRET=1 interprets kernels: unset it"):
        virtual.connect("rocm", "gfx942")


def test_without_triton_the_package_is_named() -> None:
    code = (
        "import sys; sys.modules['triton'] = None\n"
        "from glm_portable.cli import main\n"
        "main(['generate', 'x', '--virtual', 'gfx942'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert done.stderr == (
        "Error: backend 'rocm' needs the Python package 'triton': install it with pip.\n"
    )
