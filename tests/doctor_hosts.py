"""Made-up machines on which nothing is missing, one for each backend; tests take things away."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from glm_portable.host import Answer, Host

GiB = 2**30
TORCH: dict[str, Any] = {
    "version": "2.13.0",
    "cuda": None,
    "hip": None,
    "seen": [],
    "collectives": True,
}
CPU = {"version": "2.13.0+cpu", "built": "the CPU", "threads": 2, "free": 8 * GiB}
FLAGS = "fpu avx512f avx512bw avx512dq avx512vl avx512_bf16"


@dataclass
class Made:
    """What a test may change before `host` is asked for."""

    root: Path
    environment: dict[str, str] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=lambda: {"torch": "2.13.0+cpu"})
    tools: set[str] = field(default_factory=lambda: {"c++", "gcc"})
    values: dict[str, Any] = field(default_factory=lambda: dict(TORCH))
    cpu: dict[str, Any] = field(default_factory=lambda: dict(CPU))
    error: str = ""
    locked: set[str] = field(default_factory=set)
    machine: str = "x86_64"
    python_version: tuple[int, int] = (3, 11)

    def write(self, path: str, text: str = "") -> None:
        file = self.root / path.lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")

    def remove(self, path: str) -> None:
        """A file, or a folder with all in it."""
        gone = self.root / path.lstrip("/")
        for inner in sorted(gone.rglob("*"), reverse=True):
            inner.rmdir() if inner.is_dir() else inner.unlink()
        gone.rmdir() if gone.is_dir() else gone.unlink()

    def host(self) -> Host:
        def python(code: str) -> Answer:
            if self.error:
                return Answer(error=self.error)
            return Answer(self.cpu if "available_memory" in code else self.values)

        return Host(
            root=self.root,
            environment=self.environment,
            version=self.versions.get,
            python=python,
            which=lambda tool: f"/usr/bin/{tool}" if tool in self.tools else None,
            accessible=lambda path: f"/{path.relative_to(self.root)}" not in self.locked,
            machine=self.machine,
            python_version=self.python_version,
        )


def cpu(root: Path) -> Made:
    made = Made(root)
    made.write("/proc/cpuinfo", f"processor\t: 0\nflags\t\t: {FLAGS}\n")
    return made


def cuda(root: Path) -> Made:
    made = cpu(root)
    line = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.82.07  Release Build\n"
    made.write("/proc/driver/nvidia/version", line)
    for node in ("nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm"):
        made.write(f"/dev/{node}")
    device = {"name": "NVIDIA H100", "arch": "sm_90", "free": 70 * GiB, "total": 80 * GiB}
    made.versions |= {"torch": "2.13.0+cu130", "triton": "3.9.0"}
    made.values = TORCH | {"cuda": "13.0", "seen": [device, dict(device)]}
    return made


def rocm(root: Path) -> Made:
    made = cpu(root)
    for node in ("kfd", "dri/renderD128", "dri/renderD129"):
        made.write(f"/dev/{node}")
    made.write("/sys/module/amdgpu/version", "6.14.14\n")
    made.write("/proc/sys/kernel/numa_balancing", "0\n")
    device = {"name": "AMD MI300X", "arch": "gfx942", "free": 180 * GiB, "total": 192 * GiB}
    made.versions |= {"torch": "2.13.0+rocm7.2", "triton": "3.9.0"}
    made.values = TORCH | {"hip": "7.2.1", "seen": [device, dict(device)]}
    return made


CANN = "/usr/local/Ascend/cann-9.2.0"


def ascend(root: Path) -> Made:
    made = cpu(root)
    made.machine = "aarch64"
    driver = "/usr/local/Ascend/driver"
    made.write(f"{driver}/version.info", "Version=25.5.1\nascendhal_version=7.35.23\n")
    made.write(f"{driver}/lib64/driver/libascend_hal.so")
    made.write("/usr/local/bin/npu-smi")
    made.write("/usr/local/dcmi/libdcmi.so")
    for node in ("davinci0", "davinci1", "davinci_manager", "devmm_svm", "hisi_hdc"):
        made.write(f"/dev/{node}")
    about = f"{CANN}/aarch64-linux"
    made.write(f"{about}/ascend_toolkit_install.info", "version=9.2.0\narch=aarch64\n")
    made.write(f"{about}/ascend_ops_install.info", "version=9.2.0\n")
    for name in ("ascendcl", "acl_op_compiler", "ge_runner", "graph", "acl_tdt_channel", "hccl"):
        made.write(f"{CANN}/lib64/lib{name}.so")
    made.write(f"{CANN}/opp/version.info")
    made.write("/etc/hccn.conf", "address_0=10.0.0.1\n")
    made.environment = {
        "ASCEND_TOOLKIT_HOME": CANN,
        "ASCEND_HOME_PATH": CANN,
        "ASCEND_OPP_PATH": f"{CANN}/opp",
        "LD_LIBRARY_PATH": f"/usr/lib:{CANN}/lib64:{driver}/lib64",
    }
    made.versions |= {"torch-npu": "2.13.0"}
    memory = [[60 * GiB, 64 * GiB], [61 * GiB, 64 * GiB]]
    made.values = {"name": "Ascend910_9391", "generation": "A3", "memory": memory}
    return made


WHOLE: dict[str, Callable[[Path], Made]] = {
    "cpu": cpu,
    "cuda": cuda,
    "rocm": rocm,
    "ascend": ascend,
}
