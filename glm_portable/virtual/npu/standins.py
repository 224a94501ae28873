"""Libraries that let the real torch_npu be imported on a machine without CANN and without an NPU.

torch_npu links against the CANN runtime. From the symbols that the installed wheel leaves undefined
this module builds libraries of the same names: what devices, memory, streams and events need does
its work on host memory (`cann.c`); everything else exists and fails. They are loaded into the
process before torch_npu is imported and are never installed anywhere. A machine that has CANN or an
NPU is refused: the stand-ins must not take the place of the real libraries.
"""

import ctypes
import ctypes.util
import glob
import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from glm_portable.errors import UsageError

SOURCE = Path(__file__).with_name("cann.c")
RUNTIME = "libascendcl.so"
TOOLS = ("gcc", "nm", "readelf", "ldd")
CORE = ("libtorch_npu.so", "libtensorpipe.so", "libnpu_profiler.so", "libop_plugin_atb.so")
OF_THE_SYSTEM = re.compile(
    r"(libc|libm|libdl|librt|libpthread|libstdc\+\+|libgcc_s|ld-linux.*)\.so"
)
OF_PYTHON = ("Py", "_Py", "__cxa_", "__tls_get_addr")
BOOKKEEPING = re.compile(
    r"Msprof|aclAppLog|aclmdl\w+Dump|aclopCreateAttr|aclopDestroyAttr|aclopSetAttr"
    r"|acl(Create|Destroy|Get|Set)(DataBuffer|Tensor)"
    r"|aclrt(ResetEvent|StreamWaitEvent|SynchronizeEvent|ProcessReport|DeviceGetBareTgid)"
)
"""Functions that describe arguments or keep order, and compute nothing."""
FAILED = 207000
"""CANN's "feature not supported"."""


def load(soc: str, devices: int = 1) -> None:
    """Let this process see `devices` NPUs of a chip, and import torch_npu.

    Raises UsageError where CANN or an NPU is found, where a tool or torch_npu is missing, and when
    torch_npu is already there for another chip: it asks the runtime once.
    """
    refuse_real_hardware(os.environ, glob.glob("/dev/davinci*"))
    loaded = os.environ.get("CANN_STUB_SOC")
    if "torch_npu" not in sys.modules:
        os.environ |= {
            "CANN_STUB_SOC": soc,
            "CANN_STUB_DEVICES": str(devices),
            "TASK_QUEUE_ENABLE": "0",
            "TORCH_DEVICE_BACKEND_AUTOLOAD": "0",
        }
        preload(build(wheel(), _cache()))
    elif loaded is None:
        raise UsageError("torch_npu was imported before its stand-ins; start a new process.")
    importlib.import_module("torch_npu")


def refuse_real_hardware(environment: Mapping[str, str], devices: Sequence[str]) -> None:
    """Raise UsageError if this machine has CANN or an NPU, by its first sign."""
    found = next(
        (
            f"{name}={environment[name]}"
            for name in ("ASCEND_HOME_PATH", "ASCEND_TOOLKIT_HOME")
            if environment.get(name)
        ),
        None,
    )
    found = found or next(iter(devices), None)
    found = found or next((p for p in ("/usr/local/Ascend",) if os.path.exists(p)), None)
    found = found or ctypes.util.find_library("ascendcl")
    if found is not None:
        raise UsageError(
            f"a virtual NPU is refused on a machine with Ascend software or hardware ({found}): "
            "use --backend ascend without --virtual here, or another machine."
        )


def wheel() -> Path:
    """The folder of the installed torch_npu, found without importing it."""
    spec = importlib.util.find_spec("torch_npu")
    if spec is None or spec.origin is None:
        raise UsageError(
            "a virtual NPU needs the Python package torch-npu: run `make .venv-ascend/installed` "
            "and use .venv-ascend/bin/python."
        )
    return Path(spec.origin).parent


def build(folder: Path, cache: Path) -> Path:
    """Compile the stand-ins of a torch_npu into a folder of `cache`, unless they are there."""
    check_tools()
    torch = folder.parent / "torch" / "lib"
    users = [*folder.glob("_C*.so"), *(folder / "lib" / name for name in CORE)]
    key = hashlib.sha256(SOURCE.read_bytes() + Path(__file__).read_bytes())
    for user in users:
        key.update(f"{user} {user.stat().st_size} {user.stat().st_mtime_ns}".encode())
    out = cache / key.hexdigest()[:16]
    if out.exists():
        return out
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as scratch:
        made = Path(scratch) / "libraries"
        made.mkdir()
        _compile(needed(users, torch), undefined(users, torch), made)
        try:
            made.rename(out)
        except OSError:  # another process was faster
            if not out.exists():
                raise
    return out


def check_tools() -> None:
    """Raise UsageError for what is missing to build the stand-ins."""
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if missing:
        raise UsageError(
            f"a virtual NPU needs {', '.join(missing)} to build its stand-in libraries: install "
            "gcc and binutils."
        )


def preload(folder: Path) -> None:
    """Load the stand-ins for everybody in this process, the runtime first."""
    for path in sorted(folder.glob("*.so"), key=lambda p: p.name != RUNTIME):
        ctypes.CDLL(str(path), ctypes.RTLD_GLOBAL)


def needed(users: Iterable[Path], torch: Path) -> list[str]:
    """The names of the libraries that torch_npu asks for and that neither it nor torch brings."""
    users = list(users)
    ours = {p.name for p in [*torch.iterdir(), *users]}
    names = {
        name
        for user in users
        for name in re.findall(
            r"\(NEEDED\)\s+Shared library: \[(.+?)\]", _run("readelf", "-d", user)
        )
    }
    return sorted(n for n in names - ours if not OF_THE_SYSTEM.match(n))


def undefined(users: Iterable[Path], torch: Path) -> list[str]:
    """The symbols that no library present defines; the stand-ins must."""
    users = list(users)
    system = re.findall(r"=> (/\S+)", _run("ldd", torch / "libtorch_python.so"))
    system += [
        p
        for n in ("libdl.so.2", "librt.so.1", "libpthread.so.0")
        for p in glob.glob(f"/lib/*-linux-gnu/{n}")
    ]
    present: set[str] = set()
    for library in {*map(str, torch.glob("*.so*")), *map(str, users), *system}:
        present |= {name for name, _ in _symbols(library, "--defined-only")}
    wanted = {
        name
        for user in users
        for name, kind in _symbols(user, "--undefined-only")
        if kind not in "wv" and name not in present and not name.startswith(OF_PYTHON)
    }
    return sorted(wanted)


def _compile(libraries: Sequence[str], symbols: Sequence[str], out: Path) -> None:
    """All code lies in the runtime's library; the others only need it, so that dlsym finds it."""
    written = set(re.findall(r"^(?:int|const char \*)\s*\*?(\w+)\(", SOURCE.read_text(), re.M))
    rest = out.parent / "rest.c"
    rest.write_text(
        "".join(f"long {n}() {{ return {_answer(n)}; }}\n" for n in symbols if n not in written)
    )
    empty = out.parent / "empty.c"
    empty.write_text("")
    link = ["-Wl,--no-as-needed", f"-L{out}", f"-l:{RUNTIME}", "-Wl,-rpath,$ORIGIN"]
    for name in sorted({RUNTIME, *libraries}, key=lambda n: n != RUNTIME):
        parts = [SOURCE, rest] if name == RUNTIME else [empty, *link]
        _run(
            "gcc", "-shared", "-fPIC", "-O1", "-w", f"-Wl,-soname,{name}", "-o", out / name, *parts
        )


def _answer(symbol: str) -> int:
    """What a function that cann.c does not write returns: bookkeeping succeeds, the rest fails."""
    return 0 if BOOKKEEPING.match(symbol) else FAILED


def _symbols(library: str | Path, which: str) -> list[tuple[str, str]]:
    """(name, kind) of the dynamic symbols of a library."""
    rows = (line.split() for line in _run("nm", "-D", which, library).splitlines())
    return [(row[-1].split("@")[0], row[-2]) for row in rows if len(row) >= 2]


def _run(*command: str | Path) -> str:
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True)
    if done.returncode:
        raise UsageError(
            f"`{' '.join(str(c) for c in command[:4])} ...` failed while the stand-in libraries "
            f"were built: {done.stderr.strip().splitlines()[-1:]}"
        )
    return done.stdout


def _cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(base) / "glm-portable" / "npu"
