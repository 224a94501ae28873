"""aiperf: 32 streaming clients at once, for as long as --load-seconds says (60 for a release)."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.clients.conversation import MODEL
from tests.clients.server import ROOT, Server

CLIENT = "aiperf"
CLIENTS = 32
OUTPUT_TOKENS = 32
POCKET = ROOT / "glm_portable/pocket"


def hub_cache(folder: Path) -> Path:
    """The pocket tokenizer laid out as the hub's cache: offline, aiperf takes no plain folder."""
    model = folder / "hub/models--local--glm-pocket"
    snapshot = model / "snapshots/0"
    snapshot.mkdir(parents=True)
    (model / "refs").mkdir()
    (model / "refs/main").write_text("0")
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (snapshot / name).symlink_to(POCKET / name)
    return folder


def test_32_clients_at_once(server: Server, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    seconds = request.config.getoption("--load-seconds")
    command = [str(Path(sys.executable).parent / "aiperf"), "profile", "-m", MODEL]
    command += ["--url", server.url, "--endpoint-type", "chat", "--streaming"]
    command += ["--tokenizer", "local/glm-pocket", "--use-server-token-count"]
    command += ["--concurrency", str(CLIENTS), "--benchmark-duration", str(seconds)]
    command += ["--isl", "64", "--osl", str(OUTPUT_TOKENS), "--extra-inputs", "ignore_eos:true"]
    command += ["--ui", "none", "--no-gpu-telemetry", "--artifact-dir", str(tmp_path / "out")]
    offline = {"HF_HOME": str(hub_cache(tmp_path)), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        command, env=os.environ | offline, cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (summary,) = (tmp_path / "out").rglob("profile_export_aiperf.json")
    found = json.loads(summary.read_text(encoding="utf-8"))
    print(done.stdout)
    assert not found.get("error_summary"), found["error_summary"]
    assert found["request_count"]["avg"] >= CLIENTS
    assert found["output_sequence_length"]["avg"] == OUTPUT_TOKENS
    assert found["time_to_first_token"]["avg"] > 0
