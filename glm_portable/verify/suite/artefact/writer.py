"""The suite as files: a folder for each case, an index, and programs that need NumPy alone.

The bytes depend on the seed, on the versions that the index names, and on the kind of processor
where torch's float64 sums do; not on the time, the process or the number of threads.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save

from glm_portable.backends import reference
from glm_portable.errors import UsageError
from glm_portable.verify import metrics
from glm_portable.verify.call import perform
from glm_portable.verify.cases import Case, digest
from glm_portable.verify.suite.artefact.entry import Entry, entry
from glm_portable.verify.suite.artefact.models import MODELS
from glm_portable.verify.suite.judge import ULPS

SCHEMA, VERSION = "glm-portable/suite", 1
INDEX, PROGRAMS = "index.json", ("reader.py", "judge.py")
DTYPE = torch.bfloat16
RULE = {
    "error": f"at most {metrics.K:g} times plain PyTorch's, and {metrics.FLOOR:g}",
    "slope": f"off 1 by at most {metrics.K:g} times what plain PyTorch's is, and {metrics.SLOPE:g}",
    "tail": f"at most {metrics.K_TAIL:g} times plain PyTorch's, and {10 * metrics.FLOOR:g}",
    "ulps": f"at most {metrics.K_TAIL:g} times plain PyTorch's, and {ULPS:g}",
    "nonfinite": "infinities and NaN are where the exact result has them",
    "plain": "PyTorch on the host, in the case's type, one operation after the other",
}


def write(out: Path, cases: Sequence[Case], seed: int = 0, whole: bool = True) -> dict[str, Any]:
    """Write the suite; returns its index. whole: with layers and the pocket model.

    Raises UsageError rather than replace anything but an older suite.
    """
    if out.exists() and any(out.iterdir()) and not (out / INDEX).is_file():
        raise UsageError(f"{out} exists and holds no suite; choose another folder.")
    out.absolute().parent.mkdir(parents=True, exist_ok=True)
    beside = out.absolute().with_name(f".{out.name}.{os.getpid()}")
    try:
        index = _fill(beside, cases, seed, whole)
        shutil.rmtree(out, ignore_errors=True)
        beside.rename(out)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return index


def _fill(out: Path, cases: Sequence[Case], seed: int, whole: bool) -> dict[str, Any]:
    """Beside its place, so that a suite is whole or not there."""
    out.mkdir()
    for name in PROGRAMS:
        shutil.copyfile(Path(__file__).with_name(name), out / name)
    listed: dict[str, Any] = {}
    with one_thread():
        for one in _entries(cases, seed, whole):
            listed[one.folder] = _store(out / one.folder, one)
    index = {
        "schema": SCHEMA, "version": VERSION, "seed": seed, "rule": RULE, "made_by": _versions(),
        "suite": digest(cases, seed), "cases": listed,
    }  # fmt: skip
    (out / INDEX).write_text(_json(index), encoding="utf-8")
    return index


def _entries(cases: Sequence[Case], seed: int, whole: bool) -> Iterator[Entry]:
    for case in cases:
        call = case.call(seed)
        plain, true = perform(call, reference, DTYPE), perform(call, reference, torch.float64)
        yield entry(_slug(f"{case.op} {case.name}"), case, call, plain, true)
    for make in MODELS if whole else ():
        yield make(seed)


def _store(folder: Path, one: Entry) -> dict[str, str]:
    """The case's files; returns their hashes."""
    folder.mkdir()
    files = {f"{n}.safetensors": save(dict(t)) for n, t in one.tensors.items()}
    files |= {"case.json": _json(one.about).encode()}
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}


@contextmanager
def one_thread() -> Iterator[None]:
    """Sums are then made in one order, whatever the machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def _json(value: Any) -> str:
    return json.dumps(value, indent=1, sort_keys=True) + "\n"


def _versions() -> dict[str, str]:
    names = ("glm-portable", "safetensors")
    return {"torch": torch.__version__, "numpy": np.__version__, **{n: version(n) for n in names}}
