"""schemathesis: requests made from /openapi.json, right and wrong, against every endpoint."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.clients.server import ROOT, serve

CLIENT = "schemathesis"
CASES = "10"
"""Random requests an endpoint, after those that cover every keyword of its schema."""


ANSWERS = (
    "not_a_server_error,status_code_conformance,content_type_conformance,"
    "response_headers_conformance,response_schema_conformance"
)
REQUESTS = "negative_data_rejection,what_the_schema_allows_is_taken"


def test_every_answer_is_a_documented_one_and_none_a_5xx(
    server_python: str, tmp_path: Path
) -> None:
    """Statuses, types, headers, bodies and events, to requests right and wrong."""
    made(server_python, tmp_path, ANSWERS)


@pytest.mark.xfail(reason="some schemas say more, or less, than their endpoint checks: clients.md")
def test_what_a_schema_allows_is_taken_and_nothing_else(server_python: str, tmp_path: Path) -> None:
    made(server_python, tmp_path, REQUESTS)


def made(python: str, folder: Path, checks: str) -> None:
    """Run schemathesis against a server of its own."""
    # A window so short that no answer takes long.
    options = ("--dtype", "float32", "--max-model-len", "32", "--max-num-seqs", "8")
    with serve(python, *options) as running:
        command = [str(Path(sys.executable).parent / "schemathesis"), "run"]
        command += [f"{running.url}/openapi.json", "--phases", "coverage,fuzzing"]
        command += ["--checks", checks, "--request-timeout", "60"]
        command += ["--max-examples", CASES, "--seed", "1", "--generation-database", "none"]
        command += ["--no-shrink", "--continue-on-failure", "--output-sanitize", "false"]
        hooks = {"SCHEMATHESIS_HOOKS": str(ROOT / "tests/clients/schemathesis_hooks.py")}
        done = subprocess.run(
            command, env=os.environ | hooks, cwd=folder, capture_output=True, text=True
        )
    found = re.search(r"(\d+) generated, (\d+) passed", done.stdout)
    assert done.returncode == 0 and found, done.stdout + done.stderr
    assert int(found[1]) == int(found[2]) > 500
