"""What the Ascend backend needs: driver, devices, CANN and its environment, torch_npu, HCCL.

Sources: CANN 9.1 installation guide and environment variable reference; release notes of TorchNPU
26.2 (which CANN belongs to which torch_npu); Dockerfiles of quay.io/ascend/cann.
"""

import re
from collections.abc import Iterator

from glm_portable.backends._doctor._gpu import numbers
from glm_portable.host import Answer, Finding, Host, check, fine, gib, missing

ASCEND = "/usr/local/Ascend"
DEVICES = r"davinci\d+"
MANAGERS = ("davinci_manager", "devmm_svm", "hisi_hdc")
LIBRARIES = (
    "libascendcl.so", "libacl_op_compiler.so", "libge_runner.so", "libgraph.so",
    "libacl_tdt_channel.so",
)  # fmt: skip
"""Of CANN, which torch_npu 2.13.0 links against, beside HCCL's: without one it does not import."""
HCCL_LIBRARY = "libhccl.so"
HOMES = ("ASCEND_TOOLKIT_HOME", "ASCEND_HOME_PATH", "ASCEND_OPP_PATH")
OLDEST_CANN = (8, 5)
"""The oldest that TorchNPU 26.2, to which torch_npu 2.13.0 belongs, is said to work with."""
CANN_OF = {"2.13.0": "9.2.0", "2.14.0": "9.2.0", "2.12.0": "9.1.0", "2.10.0.post4": "9.1.0"}
"""The CANN that a torch_npu was released with."""
HCCL_DEFAULTS = {
    "HCCL_CONNECT_TIMEOUT": "120 s; longer where devices load at different speeds",
    "HCCL_BUFFSIZE": "200 MB a communicator",
    "HCCL_OP_EXPANSION_MODE": "the driver's choice; AIV is what engines set on A2 and A3",
}
PROBE = """\
import json, torch
from glm_portable.backends import ascend
ops = ascend.connect()
npu = torch.npu
memory = [npu.mem_get_info(i) for i in range(npu.device_count())]
print(json.dumps({"name": ops.chip.name, "generation": ops.chip.generation, "memory": memory}))
"""


def is_here(host: Host) -> bool:
    """A device, the driver, CANN, or the Python package."""
    return (
        bool(host.listed("/dev", DEVICES))
        or host.exists(ASCEND)
        or host.version("torch-npu") is not None
    )


def examine(host: Host) -> Iterator[Finding]:
    yield from _driver(host)
    yield from _nodes(host)
    yield _visible(host)
    yield from _cann(host)
    yield from _environment(host)
    yield from _libraries(host)
    yield from _packages(host)
    yield from _hccl(host)
    yield from _devices(host)


def _driver(host: Host) -> Iterator[Finding]:
    mount = f"in a container mount {ASCEND}/driver from the host."
    version = _field(host.read(f"{ASCEND}/driver/version.info"), "Version")
    if version is None:
        yield missing("driver", f"no {ASCEND}/driver/version.info", f"install the driver; {mount}")
    else:
        yield fine("driver", version)
    folders = [f"{ASCEND}/driver/lib64{end}" for end in ("", "/driver", "/common")]
    if any(host.exists(f"{folder}/libascend_hal.so") for folder in folders):
        yield fine("driver libraries", f"{ASCEND}/driver/lib64")
    else:
        yield missing("driver libraries", "no libascend_hal.so", f"repair the driver; {mount}")
    tools = [f"{folder}/npu-smi" for folder in ("/usr/local/bin", "/usr/local/sbin", "/usr/bin")]
    tool = next(filter(host.exists, tools), None)
    if tool is None:
        yield check("npu-smi", "not there", "mount /usr/local/bin/npu-smi to look at the devices.")
    elif not host.exists("/usr/local/dcmi"):
        yield check("npu-smi", f"{tool}, but no /usr/local/dcmi", "mount /usr/local/dcmi too.")
    else:
        yield fine("npu-smi", tool)


def _nodes(host: Host) -> Iterator[Finding]:
    devices = host.listed("/dev", DEVICES)
    if devices:
        yield fine("/dev/davinci*", f"{len(devices)}: {devices[0]} to {devices[-1]}")
    else:
        yield missing(
            "/dev/davinci*", "none",
            "install driver and firmware; in a container give --device /dev/davinci0 and so on.",
        )  # fmt: skip
    for name in MANAGERS:
        if host.exists(f"/dev/{name}"):
            yield fine(f"/dev/{name}", "is there")
        else:
            yield missing(
                f"/dev/{name}",
                "not there",
                f"load the driver; in a container --device /dev/{name}.",
            )


def _visible(host: Host) -> Finding:
    """The runtime reads ids up to the first that is none, and wants them to rise."""
    name, count = "ASCEND_RT_VISIBLE_DEVICES", len(host.listed("/dev", DEVICES))
    value = host.environment.get(name)
    if value is None:
        return fine(name, f"not set: all {count} are seen")
    ids = value.split(",")
    wrong = next((i for i in ids if not i.isdecimal() or int(i) >= count), None)
    rule = f"unset it, or name devices of 0 to {count - 1} in rising order, with commas alone"
    if wrong is not None:
        return missing(name, repr(value), f"{rule}: {wrong!r} and all behind it are not seen.")
    if sorted(set(map(int, ids))) != list(map(int, ids)):
        return missing(name, repr(value), f"{rule}.")
    return fine(name, value)


def _cann(host: Host) -> Iterator[Finding]:
    home = next(filter(host.exists, _homes(host)), None)
    if home is None:
        yield missing("CANN", "no toolkit", "install Ascend-cann-toolkit, or use a CANN image.")
        return
    about = f"{home}/{host.machine}-linux"
    version = _field(host.read(f"{about}/ascend_toolkit_install.info"), "version")
    if version is None:
        yield missing(
            "CANN", f"no {about}/ascend_toolkit_install.info",
            "install Ascend-cann-toolkit for this processor.",
        )  # fmt: skip
    else:
        yield _cann_version(host, version, home)
    ops = _field(host.read(f"{about}/ascend_ops_install.info"), "version")
    if ops is None:
        yield missing(
            "CANN operators", f"no {about}/ascend_ops_install.info",
            "install Ascend-cann-A3-ops or Ascend-cann-910b-ops, whichever the chip is.",
        )  # fmt: skip
    elif version is not None and ops != version:
        yield missing("CANN operators", ops, f"install the operators of CANN {version}.")
    else:
        yield fine("CANN operators", ops)


def _homes(host: Host) -> Iterator[str]:
    for name in HOMES[:2]:
        if host.environment.get(name):
            yield host.environment[name]
    yield f"{ASCEND}/cann"
    yield f"{ASCEND}/ascend-toolkit/latest"


def _cann_version(host: Host, version: str, home: str) -> Finding:
    found = f"{version} in {home}"
    if numbers(version)[:2] < OLDEST_CANN:
        return missing("CANN", found, "install CANN 8.5 or newer, which torch_npu 2.13.0 needs.")
    meant = CANN_OF.get(host.version("torch-npu") or "")
    if meant is not None and numbers(version)[:2] != numbers(meant)[:2]:
        return check(
            "CANN", found,
            f"nothing, unless an operator fails: this torch_npu was released with {meant}.",
        )  # fmt: skip
    return fine("CANN", found)


def _environment(host: Host) -> Iterator[Finding]:
    """What set_env.sh sets."""
    source = f"source {ASCEND}/ascend-toolkit/set_env.sh"
    for name in HOMES:
        value = host.environment.get(name)
        if not value:
            yield missing(name, "not set", f"{source}.")
        elif not host.exists(value):
            yield missing(name, f"{value}, which is not there", f"{source} of the CANN that is.")
        else:
            yield fine(name, value)
    if host.environment.get("TASK_QUEUE_ENABLE") == "0":
        yield check(
            "TASK_QUEUE_ENABLE", "0", "set it to 1: operators are else launched one by one."
        )
    if host.environment.get("TORCH_DEVICE_BACKEND_AUTOLOAD") == "0":
        yield check(
            "TORCH_DEVICE_BACKEND_AUTOLOAD", "0",
            "unset it, or give --backend ascend: --backend auto does not see the NPUs.",
        )  # fmt: skip


def _libraries(host: Host) -> Iterator[Finding]:
    absent = [name for name in LIBRARIES if host.library(name) is None]
    if not absent:
        yield fine("CANN libraries", f"all {len(LIBRARIES)} in LD_LIBRARY_PATH")
    for name in absent:
        yield missing(name, "not in LD_LIBRARY_PATH", f"source {ASCEND}/ascend-toolkit/set_env.sh.")


def _packages(host: Host) -> Iterator[Finding]:
    torch, npu = host.version("torch"), host.version("torch-npu")
    if torch is None:
        yield missing("torch", "not installed", "pip install -r requirements-ascend.lock.")
        return
    plain, _, build = torch.partition("+")
    if build not in ("", "cpu"):
        yield missing(
            "torch", torch, f"pip install torch=={plain}+cpu: torch_npu refuses other accelerators."
        )
    else:
        yield fine("torch", torch)
    if npu is None:
        yield missing("torch_npu", "not installed", f"pip install torch-npu=={plain}.")
    elif numbers(npu)[:3] != numbers(plain)[:3]:
        wanted = ".".join(map(str, numbers(npu)[:3]))
        yield missing(
            "torch_npu", f"{npu} beside torch {plain}",
            f"pip install torch=={wanted}, or torch-npu=={plain}: their versions must be the same.",
        )  # fmt: skip
    else:
        yield fine("torch_npu", npu)


def _hccl(host: Host) -> Iterator[Finding]:
    library = host.library(HCCL_LIBRARY)
    if library is None:
        yield missing(
            "HCCL", f"no {HCCL_LIBRARY} in LD_LIBRARY_PATH",
            f"source {ASCEND}/ascend-toolkit/set_env.sh.",
        )  # fmt: skip
    else:
        yield fine("HCCL", library)
    if host.read("/etc/hccn.conf").strip():
        yield fine("/etc/hccn.conf", "is there")
    else:
        yield check(
            "/etc/hccn.conf", "not there, or empty",
            "for several machines: set the devices' addresses with hccn_tool, mount the file.",
        )  # fmt: skip
    for name, default in HCCL_DEFAULTS.items():
        yield fine(name, host.environment.get(name) or f"not set: {default}")


def _devices(host: Host) -> Iterator[Finding]:
    """What the backend itself sees, once everything before is there."""
    if host.version("torch-npu") is None:
        return
    answer: Answer = host.python(PROBE)
    if answer.error:
        yield missing("backend", answer.error, "mend what is missing above, then look again.")
        return
    values = answer.values
    yield fine("chip", f"{values['name']} ({values['generation']})")
    if values["generation"] == "A5":
        yield fine("FP8", "MXFP8 alone, which no GLM checkpoint has: BF16 or --quantization w8a8")
    else:
        yield fine("FP8", "none in this chip: BF16 or --quantization w8a8")
    for i, (free, total) in enumerate(values["memory"]):
        found = f"{gib(free)} of {gib(total)} free"
        if free < total / 2:
            yield check(f"memory of npu:{i}", found, "end what else holds it; see npu-smi info.")
        else:
            yield fine(f"memory of npu:{i}", found)


def _field(text: str, name: str) -> str | None:
    """The value of "name=value" on a line of its own."""
    found = re.search(rf"^{name}\s*=\s*(\S+)", text, re.MULTILINE)
    return found[1] if found else None
