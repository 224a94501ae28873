"""schemathesis: requests made from /openapi.json, right and wrong, against every endpoint.

But for /v1/tokenize and /v1/detokenize, which are /tokenize and /detokenize under another path.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.clients.server import ROOT, serve

CLIENT = "schemathesis"
CASES = "30"
"""Random requests an endpoint, after those that cover every keyword of its schema."""

CHECKS = (
    "not_a_server_error,status_code_conformance,content_type_conformance,"
    "response_headers_conformance,response_schema_conformance,"
    "negative_data_rejection,what_the_schema_allows_is_taken"
)


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> str:
    return str(request.config.getoption("--schemathesis-seed"))


def test_what_the_schema_allows_is_taken_and_nothing_else_and_every_answer_is_as_described(
    server_python: str, seed: str, tmp_path: Path
) -> None:
    """Statuses, types, headers, bodies and events, to requests right and wrong; never a 5xx."""
    # A window that holds most of what is generated, tools too: a wrong request that is refused for
    # its length would pass for one that was found wrong. The hooks keep the answers short.
    options = ("--dtype", "float32", "--max-model-len", "512", "--max-num-seqs", "8")
    with serve(server_python, *options) as running:
        command = [str(Path(sys.executable).parent / "schemathesis"), "run"]
        command += [f"{running.url}/openapi.json", "--phases", "coverage,fuzzing"]
        command += ["--exclude-path", "/v1/tokenize", "--exclude-path", "/v1/detokenize"]
        command += ["--checks", CHECKS, "--request-timeout", "60"]
        command += ["--max-examples", CASES, "--seed", seed, "--generation-database", "none"]
        command += ["--no-shrink", "--continue-on-failure", "--output-sanitize", "false"]
        hooks = {"SCHEMATHESIS_HOOKS": str(ROOT / "tests/clients/schemathesis_hooks.py")}
        done = subprocess.run(
            command, env=os.environ | hooks, cwd=tmp_path, capture_output=True, text=True
        )
    found = re.search(r"(\d+) generated, (\d+) passed", done.stdout)
    assert done.returncode == 0 and found, done.stdout + done.stderr
    assert int(found[1]) == int(found[2]) > 4_000
