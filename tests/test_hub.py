import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

from glm_portable import hub
from glm_portable.errors import UsageError

FILES = {
    "config.json": b"{}",
    "generation_config.json": b"{}",
    "model-00001-of-00001.safetensors": b"weights",
    "model.safetensors.index.json": b"{}",
    "mtp.safetensors": b"more weights",
    "quant_model_description.json": b"{}",
    "quant_model_weights.safetensors.index.json": b"{}",
    "tokenizer.json": b"{}",
    "tokenizer_config.json": b"{}",
    "chat_template.jinja": b"[gMASK]<sop>",
}
UNWANTED = {
    "pytorch_model.bin": b"pickle",
    "training_args.pt": b"pickle",
    "modeling_glm.py": b"raise SystemExit",
    "README.md": b"# GLM",
    "original/consolidated.safetensors": b"weights again",
    "assets/config.json": b"{}",
}
REPOSITORY = FILES | UNWANTED
COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(BaseHTTPRequestHandler):
    """Both hubs' protocols as far as a snapshot needs them, for one repository: some/model."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        query = parse_qs(url.query)
        path = unquote(url.path)
        if path.startswith("/api/models/some/model/tree/"):
            self._json([self._hugging_face_entry(name) for name in REPOSITORY])
        elif path.startswith("/api/models/some/model"):
            siblings = [{"rfilename": name} for name in REPOSITORY]
            self._json({"id": "some/model", "sha": COMMIT, "siblings": siblings})
        elif path.startswith(f"/some/model/resolve/{COMMIT}/"):
            self._file(path.removeprefix(f"/some/model/resolve/{COMMIT}/"))
        elif path == "/api/v1/models/some/model/repo/files":
            entries = [self._modelscope_entry(name) for name in REPOSITORY]
            self._json({"Code": 200, "Success": True, "Data": {"Files": entries}})
        elif path == "/api/v1/models/some/model/repo":
            self._file(query["FilePath"][0])
        else:
            self._json({"error": "Repository not found", "Message": "not found"}, 404)

    do_HEAD = do_GET

    def _hugging_face_entry(self, name: str) -> dict[str, object]:
        size, oid = len(REPOSITORY[name]), hashlib.sha1(REPOSITORY[name]).hexdigest()
        return {"type": "file", "path": name, "size": size, "oid": oid}

    def _modelscope_entry(self, name: str) -> dict[str, object]:
        sha256 = hashlib.sha256(REPOSITORY[name]).hexdigest()
        size = len(REPOSITORY[name])
        return {"Path": name, "Name": name, "Type": "blob", "Size": size, "Sha256": sha256}

    def _file(self, name: str) -> None:
        self._answer(REPOSITORY[name], 200, "application/octet-stream")

    def _json(self, value: object, status: int = 200) -> None:
        self._answer(json.dumps(value).encode(), status, "application/json")

    def _answer(self, body: bytes, status: int, kind: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", f'"{hashlib.sha1(body).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        if status == 404:
            self.send_header("X-Error-Code", "RepoNotFound")
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[ThreadingHTTPServer]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


# The hubs' libraries read their environment once, at import: so each look-up is a process.
PROGRAM = """
import sys
from glm_portable.errors import UsageError
from glm_portable.hub import resolve
for model in sys.argv[1:]:
    try:
        print("answer: folder", resolve(model))
    except UsageError as error:
        print("answer: refused", error)
"""


def resolve(models: list[str], server: ThreadingHTTPServer, home: Path) -> list[str]:
    endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(home),
        "HF_HOME": str(home / "hf"),
        "HF_ENDPOINT": endpoint,
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "MODELSCOPE_CACHE": str(home / "ms"),
        "MODELSCOPE_ENDPOINT": endpoint,
        "MODELSCOPE_REPO_TREE_PAGE_MAX_ATTEMPTS": "1",
        "NO_PROXY": "127.0.0.1",
    }
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM, *models],
        env=environment,
        cwd=Path(__file__).parent.parent,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    lines = run.stdout.splitlines()
    return [line.removeprefix("answer: ") for line in lines if line.startswith("answer: ")]


def contents(folder: Path) -> dict[str, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.mark.parametrize("prefix", ["", "modelscope:"])
def test_downloads_what_a_model_needs_and_keeps_it_for_offline_use(
    server: ThreadingHTTPServer, tmp_path: Path, prefix: str
) -> None:
    online = [f"{prefix}some/model", f"{prefix}no/such-model"]
    found, unknown = resolve(online, server, tmp_path)
    assert found.startswith(f"folder {tmp_path}"), found
    assert contents(Path(found.removeprefix("folder "))) == FILES
    assert unknown.startswith("refused no/such-model could not be downloaded and is not complete")
    assert "404" in unknown or "not found" in unknown.lower()
    server.shutdown()
    server.server_close()
    offline = [f"{prefix}some/model", f"{prefix}some/other"]
    cached, out_of_reach = resolve(offline, server, tmp_path)
    assert cached == found
    assert out_of_reach.startswith("refused some/other could not be downloaded and is not complete")
    assert "connect" in out_of_reach.lower()


def test_a_local_folder_is_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "zai-org" / "GLM-4.5-Air").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert hub.resolve(str(tmp_path)) == tmp_path
    assert hub.resolve("zai-org/GLM-4.5-Air") == Path("zai-org/GLM-4.5-Air")
    assert hub.resolve("~/zai-org") == tmp_path / "zai-org"
    assert hub.resolve(".") == Path(".")


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("/no/such/folder", "There is no folder /no/such/folder"),
        ("./glm", "There is no folder ./glm"),
        ("~/glm", "There is no folder ~/glm"),
        ("~nobody-here/glm", "There is no folder ~nobody-here/glm"),
        ("/" + "x" * 5000, "There is no folder /xxx"),
        ("x\0y", "is neither"),
        ("glm", "'glm' is neither a folder nor an id such as zai-org/GLM-4.5-Air"),
        ("", "'' is neither a folder nor an id"),
        ("a/b/c", "'a/b/c' is neither"),
        ("-x/y", "'-x/y' is neither"),
        ("../x", "There is no folder ../x"),
        ("modelscope:", "'' is neither"),
        ("modelscope:../x", "'../x' is neither"),
        ("https://huggingface.co/zai-org/GLM-4.5", "is neither a folder nor an id"),
    ],
)
def test_names_that_mean_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(UsageError) as caught:
        hub.resolve(model)
    assert message in str(caught.value)


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(UsageError, match="is a file: point at the folder that holds config.json"):
        hub.resolve(str(tmp_path / "model.safetensors"))
