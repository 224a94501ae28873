"""What every backend needs of a machine, and what makes the CPU backend fast."""

import re
from collections.abc import Iterator

from glm_portable.host import Answer, Finding, Host, check, fine, gib, missing

OLDEST_PYTHON = (3, 11)
VECTOR = {"avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_bf16"}
SMALL = 2 * 2**30
"""The pocket model takes a tenth of it; every other GLM much more than this."""
PROBE = """\
import json, torch
from glm_portable.engine.limits import available_memory
built = {"CUDA": torch.version.cuda, "ROCm": torch.version.hip}
name = next((f"{kind} {version}" for kind, version in built.items() if version), "the CPU")
print(json.dumps({"version": torch.__version__, "built": name,
                  "threads": torch.get_num_threads(), "free": available_memory()}))
"""


def is_here(host: Host) -> bool:
    """Always: any machine has a CPU."""
    return True


def examine(host: Host) -> Iterator[Finding]:
    answer = host.python(PROBE)
    yield _python(host)
    yield _torch(host, answer)
    yield _vectors(host)
    yield _compiler(host)
    if not answer.error:
        yield _memory(answer.values["free"])


def _python(host: Host) -> Finding:
    found = ".".join(map(str, host.python_version))
    if host.python_version >= OLDEST_PYTHON:
        return fine("Python", found)
    return missing("Python", found, "install Python 3.11 or newer.")


def _torch(host: Host, answer: Answer) -> Finding:
    if host.version("torch") is None:
        return missing("torch", "not installed", "pip install torch.")
    if answer.error:
        return missing(
            "torch", f"does not import: {answer.error}",
            "repair the package that the error names; for a missing library of an accelerator's "
            "runtime see that backend's list.",
        )  # fmt: skip
    values = answer.values
    found = f"{values['version']}, built for {values['built']}, {values['threads']} threads"
    return fine("torch", found)


def _vectors(host: Host) -> Finding:
    if host.machine not in ("x86_64", "AMD64"):
        return fine("BF16 kernel", f"{host.machine}: torch's own products are used")
    flags = re.search(r"^flags\s*:(.*)$", host.read("/proc/cpuinfo"), re.MULTILINE)
    absent = sorted(VECTOR - set(flags[1].split() if flags else ()))
    if not absent:
        return fine("BF16 kernel", "the processor has AVX512-BF16")
    return check(
        "BF16 kernel", f"the processor has no {', '.join(absent)}",
        "nothing to install: BF16 is multiplied by oneDNN here, more slowly; float32 may be as "
        "fast.",
    )  # fmt: skip


def _compiler(host: Host) -> Finding:
    found = host.which("c++")
    if found:
        return fine("C++ compiler", found)
    return check(
        "C++ compiler", "no c++ on PATH",
        "install g++: without it the BF16 kernel is not built and torch's products are used.",
    )  # fmt: skip


def _memory(free: int) -> Finding:
    if free >= SMALL:
        return fine("free memory", gib(free))
    return check("free memory", gib(free), "free some: only the pocket model is sure to fit.")
