"""What backends tell of their machine: the system's files, and nothing where these are silent."""

from pathlib import Path

import pytest
import torch

from glm_portable import ops
from glm_portable.backends import _gpu, _host
from glm_portable.backends._gpu import GpuOps
from glm_portable.kernels.target import Target


def test_the_processor_is_named(tmp_path: Path) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(
        "processor\t: 0\nmodel name\t: EPYC 9654 96-Core\nflags: fpu\nmodel name : x"
    )
    assert _host.processor(cpuinfo) == "EPYC 9654 96-Core"
    assert _host.processor(tmp_path / "none")


def test_what_is_not_there_is_left_out(tmp_path: Path) -> None:
    assert _host.driver(tmp_path / "none", "(.*)") == {}
    assert set(_host.versions("torch", "no-such-package-here")) == {"torch"}


@pytest.mark.parametrize("name", ["cpu", "reference"])
def test_backends_here_tell_their_chip(name: str) -> None:
    said = ops.load(name).describe()  # type: ignore[attr-defined]  # optional
    assert said["chip"] == _host.processor()
    assert all(isinstance(value, str) and value for value in said.values())


@pytest.mark.parametrize(
    ("arch", "path", "text", "version", "runtime"),
    [
        ("sm_90", "/proc/driver/nvidia/version",
         "NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue Mar  5\nGCC version: 12.2",
         "550.54.15", "CUDA"),
        ("sm_90", "/proc/driver/nvidia/version",
         "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  570.86.10  Release Build",
         "570.86.10", "CUDA"),
        ("gfx942", "/sys/module/amdgpu/version", "6.12.12\n", "6.12.12", "ROCm"),
    ],
)  # fmt: skip
def test_gpus_tell_chip_driver_and_runtime(
    arch: str,
    path: str,
    text: str,
    version: str,
    runtime: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "version").write_text(text)

    def file(asked: str) -> Path:
        assert asked == path
        return tmp_path / "version"

    monkeypatch.setattr(_gpu, "Path", file)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Some GPU")
    said = GpuOps("x", torch.device("cuda", 0), Target(arch), lambda *a, **k: None).describe()
    assert said["chip"] == f"Some GPU ({arch})"
    assert said["driver"] == version and runtime in said
    simulated = GpuOps("x", torch.device("cpu"), Target(arch), lambda *a, **k: None).describe()
    assert simulated["chip"] == f"{arch}, simulated on {_host.processor()}"
