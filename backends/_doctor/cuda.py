"""What the CUDA backend needs: driver, device nodes, a torch for CUDA, triton, Hopper or newer."""

import re
from collections.abc import Iterator

from glm_portable.backends._doctor import _gpu
from glm_portable.host import Finding, Host, fine, missing

OLDEST_DRIVER = {12: 525, 13: 580}
"""By CUDA's major version (CUDA Toolkit release notes, minor version compatibility)."""
WHEEL = "https://download.pytorch.org/whl/cu130"
NODES = r"nvidia\d+"


def is_here(host: Host) -> bool:
    return bool(host.listed("/dev", NODES)) or host.exists("/proc/driver/nvidia/version")


def examine(host: Host) -> Iterator[Finding]:
    driver = re.search(r"Module.*?\s(\d+(\.\d+)+)\s", host.read("/proc/driver/nvidia/version"))
    answer = host.python(_gpu.PROBE)
    built = _gpu.torch_build(answer, "CUDA", "cuda", WHEEL)
    yield _driver(driver[1] if driver else None, answer.values.get("cuda"))
    yield from _nodes(host)
    yield from _gpu.visible(host, ("CUDA_VISIBLE_DEVICES",), len(host.listed("/dev", NODES)))
    yield built
    yield from _gpu.toolchain(host)
    if not built.advice:
        why = "check the driver, the device nodes and CUDA_VISIBLE_DEVICES; run nvidia-smi."
        chips = "Hopper and Blackwell (compute capability 9.0 or newer)"
        yield from _gpu.seen(answer.values, _dialect, chips, why)
        yield _gpu.collectives(answer.values, "NCCL")


def _driver(version: str | None, cuda: str | None) -> Finding:
    if version is None:
        return missing(
            "driver", "no /proc/driver/nvidia/version",
            "install NVIDIA's driver; in a container start it with --gpus all.",
        )  # fmt: skip
    major = _gpu.numbers(cuda)[0] if cuda else None
    oldest = OLDEST_DRIVER.get(major) if major else None
    if oldest and _gpu.numbers(version)[0] < oldest:
        return missing(
            "driver", version, f"install driver {oldest} or newer, which CUDA {major} needs."
        )
    return fine("driver", version)


def _nodes(host: Host) -> Iterator[Finding]:
    devices = host.listed("/dev", NODES)
    advice = "load the driver's modules; in a container start it with --gpus all."
    if devices:
        yield fine("/dev/nvidia*", f"{len(devices)}: {devices[0]} to {devices[-1]}")
    else:
        yield missing("/dev/nvidia*", "none", advice)
    for node in ("nvidiactl", "nvidia-uvm"):
        if host.exists(f"/dev/{node}"):
            yield fine(f"/dev/{node}", "is there")
        else:
            yield missing(f"/dev/{node}", "not there", advice)


def _dialect(arch: str) -> str | None:
    digits = arch.removeprefix("sm_")
    return "OCP e4m3" if digits.isdecimal() and int(digits) >= 90 else None
