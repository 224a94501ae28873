"""What `doctor` asks of an Ascend host is what the installed torch_npu needs."""

import json
import os
import subprocess
import sys

from glm_portable.backends._doctor import ascend
from glm_portable.virtual.npu import standins


def test_the_libraries_are_those_that_torch_npu_links() -> None:
    folder = standins.wheel()
    users = [*folder.glob("_C*.so"), *(folder / "lib" / name for name in standins.CORE[:2])]
    linked = set(standins.needed(users, folder.parent / "torch" / "lib"))
    inside = {path.name for path in (folder / "lib").iterdir()}
    assert linked - inside == {*ascend.LIBRARIES, ascend.HCCL_LIBRARY}


def test_here_torch_npu_is_installed_and_everything_else_is_missing() -> None:
    """Without the variable, import torch fails here; doctor must not."""
    env = {n: v for n, v in os.environ.items() if n != "TORCH_DEVICE_BACKEND_AUTOLOAD"}
    code = "from glm_portable.cli import main; main(['doctor', '--json'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)
    assert done.returncode == 3, done.stderr
    found = {i["item"]: i for i in json.loads(done.stdout)["backends"]["ascend"]}
    assert found["torch_npu"]["verdict"] == "fine" and found["driver"]["verdict"] == "missing"
    assert found["backend"]["found"].startswith("ImportError: libhccl.so: cannot open")
