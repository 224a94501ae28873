"""What the ROCm backend needs: amdgpu, /dev/kfd, a torch for ROCm, triton, MI300 or MI350."""

from collections.abc import Iterator

from glm_portable.backends._doctor import _gpu
from glm_portable.host import Finding, Host, check, fine, missing

WHEEL = "the ROCm index of https://download.pytorch.org/whl"
DIALECTS = {"gfx942": "FNUZ e4m3 (weights are converted, exactly)", "gfx950": "OCP e4m3"}
HIDING = ("ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES")
CONTAINER = "in a container start it with --device /dev/kfd --device /dev/dri"


def is_here(host: Host) -> bool:
    return host.exists("/dev/kfd") or host.exists("/sys/module/amdgpu")


def examine(host: Host) -> Iterator[Finding]:
    answer = host.python(_gpu.PROBE)
    built = _gpu.torch_build(answer, "ROCm", "hip", WHEEL)
    yield _driver(host)
    yield _kfd(host)
    nodes = host.listed("/dev/dri", r"renderD\d+")
    if nodes:
        yield fine("/dev/dri/renderD*", f"{len(nodes)}: {nodes[0]} to {nodes[-1]}")
    else:
        yield missing("/dev/dri/renderD*", "none", f"load amdgpu; {CONTAINER}.")
    yield from _gpu.visible(host, HIDING, len(nodes))
    yield _numa(host)
    yield built
    yield from _gpu.toolchain(host)
    if not built.advice:
        why = "check /dev/kfd, the render nodes and HIP_VISIBLE_DEVICES; run rocm-smi."
        chips = "MI300 (gfx942) and MI350 (gfx950)"
        yield from _gpu.seen(answer.values, DIALECTS.get, chips, why)
        yield _gpu.collectives(answer.values, "RCCL")


def _driver(host: Host) -> Finding:
    if not host.exists("/sys/module/amdgpu"):
        return missing("driver", "amdgpu is not loaded", "install amdgpu-dkms and load amdgpu.")
    version = host.read("/sys/module/amdgpu/version").strip()
    return fine("driver", f"amdgpu {version}" if version else "amdgpu of the kernel")


def _kfd(host: Host) -> Finding:
    if not host.exists("/dev/kfd"):
        return missing("/dev/kfd", "not there", f"load amdgpu; {CONTAINER}.")
    if not host.accessible(host.path("/dev/kfd")):
        return missing(
            "/dev/kfd", "may not be opened",
            "add the user to the groups render and video (--group-add in a container).",
        )  # fmt: skip
    return fine("/dev/kfd", "may be opened")


def _numa(host: Host) -> Finding:
    """AMD Instinct MI300X system optimization guide."""
    value = host.read("/proc/sys/kernel/numa_balancing").strip()
    if value in ("", "0"):
        return fine("NUMA balancing", "off")
    return check(
        "NUMA balancing", "on",
        "sysctl kernel.numa_balancing=0: moving pages makes GPUs wait.",
    )  # fmt: skip
