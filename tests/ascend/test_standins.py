"""The stand-ins: what they build, where they refuse, and that nothing computes on them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from glm_portable.backends import ascend
from glm_portable.errors import UsageError
from glm_portable.virtual import NPUS, connect, npu
from glm_portable.virtual.npu import standins

VERSIONS = {"Ascend910B1": 220, "Ascend910_9391": 250, "Ascend950PR_9599": 260}


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    env = os.environ | {"TORCH_DEVICE_BACKEND_AUTOLOAD": "0"} | environment
    env.pop("CANN_STUB_SOC", None)
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)


@pytest.mark.parametrize("chip", NPUS)
def test_torch_npu_sees_the_chip_and_computes_nothing(chip: str) -> None:
    done = python(
        "from glm_portable.virtual.npu import standins\n"
        f"standins.load({chip!r}, 3)\n"
        "import os, torch\n"
        "print(torch.npu.device_count(), torch.npu.get_device_name(0), "
        "torch.npu.get_soc_version(), os.environ['TASK_QUEUE_ENABLE'])\n"
        "x = torch.empty(4, device='npu:2')\n"
        "for _ in range(3):\n"
        "    try:\n"
        "        print(x + x)\n"
        "    except RuntimeError:\n"
        "        print('refused')\n"
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()[-4:]
    assert lines == [f"3 {chip} {VERSIONS[chip]} 0", *["refused"] * 3]


def test_nothing_is_installed(tmp_path: Path) -> None:
    folder = standins.wheel()
    made = standins.build(folder, tmp_path)
    assert made.parent == tmp_path and (made / standins.RUNTIME).exists()
    assert not (folder.parent / "torch_npu.libs").exists()
    before = (made / standins.RUNTIME).stat().st_mtime_ns
    assert standins.build(folder, tmp_path) == made
    assert (made / standins.RUNTIME).stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("environment", "devices", "sign"),
    [
        ({"ASCEND_HOME_PATH": "/opt/cann"}, [], "ASCEND_HOME_PATH=/opt/cann"),
        ({"ASCEND_TOOLKIT_HOME": "/opt/cann"}, [], "ASCEND_TOOLKIT_HOME=/opt/cann"),
        ({}, ["/dev/davinci0"], "/dev/davinci0"),
    ],
)
def test_real_hardware_is_refused(
    environment: dict[str, str], devices: list[str], sign: str
) -> None:
    with pytest.raises(UsageError, match=f"Ascend software or hardware .{sign}.: use --backend"):
        standins.refuse_real_hardware(environment, devices)
    standins.refuse_real_hardware({}, [])


def test_cann_on_the_loader_path_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ctypes.util.find_library", lambda name: f"lib{name}.so")
    with pytest.raises(UsageError, match="libascendcl.so"):
        standins.refuse_real_hardware({}, [])


def test_missing_tools_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(
        UsageError, match="needs gcc, nm, readelf, ldd .*: install gcc and binutils"
    ):
        standins.check_tools()


def test_a_missing_torch_npu_is_named() -> None:
    done = python(
        "import sys; sys.modules['torch_npu'] = None\n"
        "from glm_portable.backends import ascend\n"
        "from glm_portable.errors import UsageError\n"
        "try: ascend.connect()\n"
        "except UsageError as error: print(error)"
    )
    assert "needs the Python package torch-npu" in done.stdout, done.stderr


def test_connecting_without_an_npu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    connect("ascend", "Ascend910_9391")
    monkeypatch.setattr(torch.npu, "is_available", lambda: False)  # type: ignore[attr-defined]
    with pytest.raises(UsageError, match="torch_npu sees no NPU; check `npu-smi info`"):
        ascend.connect()


def test_the_real_entry_point_reads_the_chip_from_the_device() -> None:
    done = python(
        "from glm_portable.virtual.npu import standins\n"
        "standins.load('Ascend910B1')\n"
        "from glm_portable.backends import ascend\n"
        "from glm_portable.virtual.npu.devices import Devices\n"
        "from glm_portable.virtual.npu.machine import Machine\n"
        "with Devices(Machine('Ascend910B1')):\n"
        "    ops = ascend.connect()\n"
        "    print(ops.chip.generation, ops.device)"
    )
    assert done.stdout.splitlines()[-1:] == ["A2 npu:0"], done.stderr


@pytest.mark.parametrize("chip", ["Ascend310P3", "Ascend910A", "gfx942"])
def test_another_chip_is_refused(chip: str) -> None:
    with pytest.raises(UsageError, match=f"Ascend chip '{chip}' is not supported"):
        npu.connect(chip)
