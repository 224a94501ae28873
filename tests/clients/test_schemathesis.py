"""schemathesis: requests made from /openapi.json, right and wrong, against every endpoint."""

import os
import re
import subprocess
import sys
from pathlib import Path

from tests.clients.server import ROOT, serve

CLIENT = "schemathesis"
CASES = "10"
"""Random requests an endpoint, after those that cover every keyword of its schema."""


def test_every_endpoint_does_what_its_schema_says(server_python: str, tmp_path: Path) -> None:
    """No 5xx; only documented statuses, types and bodies; wrong data refused, right data taken.

    Not checked: methods that an endpoint does not have, and keys (the server has none).
    """
    # A window so short that no answer takes long.
    options = ("--dtype", "float32", "--max-model-len", "32", "--max-num-seqs", "8")
    with serve(server_python, *options) as running:
        command = [str(Path(sys.executable).parent / "schemathesis"), "run"]
        command += [
            f"{running.url}/openapi.json",
            "--phases",
            "coverage,fuzzing",
            "--checks",
            "all",
        ]
        command += ["--exclude-checks", "unsupported_method,ignored_auth,positive_data_acceptance"]
        command += ["--max-examples", CASES, "--seed", "1", "--generation-database", "none"]
        command += [
            "--no-shrink",
            "--request-timeout",
            "60",
            "--continue-on-failure",
            "--output-sanitize",
            "false",
        ]
        hooks = {"SCHEMATHESIS_HOOKS": str(ROOT / "tests/clients/schemathesis_hooks.py")}
        done = subprocess.run(
            command, env=os.environ | hooks, cwd=tmp_path, capture_output=True, text=True
        )
    found = re.search(r"(\d+) generated, (\d+) passed", done.stdout)
    assert done.returncode == 0 and found, done.stdout + done.stderr
    assert int(found[1]) == int(found[2]) > 500
