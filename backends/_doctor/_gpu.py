"""What the two GPU backends look at alike: torch's build, triton, what torch sees."""

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from glm_portable.host import Answer, Finding, Host, check, fine, gib, missing

OLDEST_TRITON = (3, 9)
PROBE = """\
import json, torch
seen = []
for i in range(torch.cuda.device_count()) if torch.cuda.is_available() else ():
    p = torch.cuda.get_device_properties(i)
    free, total = torch.cuda.mem_get_info(i)
    arch = getattr(p, "gcnArchName", "").split(":")[0] if torch.version.hip else ""
    seen.append({"name": p.name, "arch": arch or f"sm_{p.major}{p.minor}",
                 "free": free, "total": total})
print(json.dumps({"version": torch.__version__, "cuda": torch.version.cuda,
                  "hip": torch.version.hip, "seen": seen,
                  "collectives": torch.distributed.is_available()
                  and torch.distributed.is_nccl_available()}))
"""


def toolchain(host: Host) -> Iterator[Finding]:
    """Triton and what it needs to build a launcher."""
    version = host.version("triton") or host.version("pytorch-triton-rocm")
    if version is None:
        yield missing("triton", "not installed", "pip install 'triton>=3.9'.")
    elif numbers(version)[:2] < OLDEST_TRITON:
        yield missing(
            "triton", version, "pip install 'triton>=3.9': the kernels are written to it."
        )
    else:
        yield fine("triton", version)
    compiler = next(filter(None, map(host.which, ("gcc", "clang", "cc"))), None)
    if compiler is None:
        yield missing("C compiler", "no gcc, clang or cc on PATH", "install gcc: triton calls it.")
    else:
        yield fine("C compiler", compiler)


def torch_build(answer: Answer, vendor: str, key: str, wheel: str) -> Finding:
    """Whether torch imports and is built for this vendor."""
    item, values = f"torch for {vendor}", answer.values
    if answer.error:
        return missing(item, f"does not import: {answer.error}", f"pip install torch from {wheel}.")
    if not values[key]:
        other = "the CPU" if not (values["cuda"] or values["hip"]) else "another GPU"
        found = f"{values['version']}, built for {other}"
        return missing(item, found, f"pip install torch from {wheel}.")
    return fine(item, f"{values['version']}, {vendor} {values[key]}")


def seen(
    values: Mapping[str, Any], dialects: Callable[[str], str | None], chips: str, why: str
) -> Iterator[Finding]:
    """The devices that torch sees: architecture, dialect of FP8, free memory."""
    if not values.get("seen"):
        yield missing("devices in torch", "none", why)
        return
    for i, device in enumerate(values["seen"]):
        item, arch = f"device {i}", device["arch"]
        dialect = dialects(arch)
        memory = f"{gib(device['free'])} of {gib(device['total'])} free"
        found = f"{device['name']} ({arch}), {memory}"
        if dialect is None:
            yield missing(item, found, f"this backend is for {chips}.")
        elif device["free"] < device["total"] / 2:
            yield check(item, f"{found}, FP8 is {dialect}", "end what else holds its memory.")
        else:
            yield fine(item, f"{found}, FP8 is {dialect}")


def visible(host: Host, names: tuple[str, ...], count: int) -> Iterator[Finding]:
    """The variables that hide devices; ids that name none, hide all that follow."""
    given = {n: host.environment[n] for n in names if n in host.environment}
    if not given:
        yield fine(" or ".join(names), f"not set: all {count} are seen")
    for name, value in given.items():
        ids = [part.strip() for part in value.split(",")]
        wrong = [i for i in ids if i.isdecimal() and int(i) >= count or i in ("", "-1")]
        if wrong:
            yield missing(
                name, repr(value),
                f"unset it, or name devices of 0 to {count - 1}: {wrong[0]!r} is none, and hides "
                "all that follow.",
            )  # fmt: skip
        else:
            yield fine(name, value)


def collectives(values: Mapping[str, Any], library: str) -> Finding:
    if values["collectives"]:
        return fine(library, "in this torch")
    return check(
        library, "not in this torch", "install another build of torch to use several devices."
    )


def numbers(version: str) -> tuple[int, ...]:
    """ "580.82.07" as (580, 82, 7); what follows a letter does not count."""
    found = re.match(r"\d+(\.\d+)*", version)
    return tuple(map(int, found[0].split("."))) if found else ()
