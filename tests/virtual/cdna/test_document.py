"""The example and the faults of docs/cdna-simulator.md are what the code does."""

import re
import subprocess
import sys
from pathlib import Path

from glm_portable.virtual import cdna

DOCUMENT = Path(__file__).parents[3] / "docs" / "cdna-simulator.md"


def test_the_example_runs(tmp_path: Path) -> None:
    """As a file of its own: triton reads a kernel's source."""
    match = re.search(r"```python\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    assert match is not None
    example = tmp_path / "example.py"
    example.write_text(match[1])
    environment = {"TRITON_CACHE_DIR": str(tmp_path), "TRITON_DEFAULT_FP_FUSION": "1"}
    done = subprocess.run(
        [sys.executable, str(example)],
        cwd=DOCUMENT.parents[1],
        env={**environment, "PYTHONPATH": str(DOCUMENT.parents[1])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert re.search(r"instructions=\{.*'mfma': [1-9]", done.stdout), done.stdout


def test_every_fault_is_listed() -> None:
    faults = {
        name
        for name in cdna.__all__
        if isinstance(found := getattr(cdna, name), type)
        and issubclass(found, cdna.Fault)
        and found is not cdna.Fault
    }
    listed = set(re.findall(r"^\| `(\w+)` \|", DOCUMENT.read_text(), re.MULTILINE))
    assert listed == faults
