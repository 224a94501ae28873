"""Calls of ops in folders: the cases of the suite and the reproducers of `verify bisect`.

    FOLDER/
      call.json             what is called, and whatever else is known of it
      inputs.safetensors    the call's tensors, by name
      <who>.safetensors     results, by name: "exact" is the float64 one, "plain" that of plain
                            PyTorch in the call's type; others are backends'

    call.json: {"schema": "glm-portable/call", "version": 1, "op": "linear", "dtype": "bfloat16",
     "attributes": {"block": [128, 128]}, "about": {...},
     "files": {"inputs.safetensors": {"sha256": "...", "kinds": {"x": "bfloat16"}}, ...}}

dtype is the type of the activations. `kinds` names the types that NumPy has not: such a tensor is
stored as the unsigned integers of its bits. A bfloat16 number is the upper half of a float32 one,
so in NumPy it is `(x.astype("u4") << 16).view("f4")`.

The same call gives the same bytes. A folder is written beside its place and then renamed, so it is
whole or not there.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from glm_portable.errors import UsageError
from glm_portable.verify.call import OPS, Call, Tensors

SCHEMA, VERSION = "glm-portable/call", 1
JSON_FILE, INPUTS = "call.json", "inputs"
KINDS = {
    "bfloat16": torch.bfloat16,
    "float8_e4m3fn": torch.float8_e4m3fn,
    "float8_e4m3fnuz": torch.float8_e4m3fnuz,
}
"""Types that NumPy has not."""
BITS = {1: torch.uint8, 2: torch.uint16}
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32, "float64": torch.float64}


@dataclass(frozen=True)
class StoredCall:
    """A call with results. dtype: of its activations. about: anything that JSON can hold."""

    call: Call
    dtype: torch.dtype
    results: Mapping[str, Tensors]
    about: Mapping[str, Any] = field(default_factory=dict)


def write(folder: Path, stored: StoredCall) -> None:
    """Write the folder, in place of an older one of this kind; OSError where it cannot be.

    Raises UsageError rather than replace anything else.
    """
    if folder.exists() and not (folder / JSON_FILE).is_file():
        raise UsageError(f"{folder} exists and holds no stored call; choose another folder.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    beside = folder.with_name(f".{folder.name}.{os.getpid()}")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir()
    try:
        _fill(beside, stored)
        if folder.exists():
            shutil.rmtree(folder)
        beside.rename(folder)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def read(folder: Path) -> StoredCall:
    """What `write` wrote, every bit of it. Raises UsageError for anything else."""
    header = _header(folder)
    try:
        files = header["files"]
        tensors = {name: _tensors(folder, name, about) for name, about in files.items()}
        inputs = tensors.pop(f"{INPUTS}.safetensors")
        call = Call(str(header["op"]), inputs, dict(header["attributes"]))
        results = {name.removesuffix(".safetensors"): t for name, t in tensors.items()}
        stored = StoredCall(call, DTYPES[header["dtype"]], results, dict(header["about"]))
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise UsageError(
            f"{folder / JSON_FILE} is damaged ({type(error).__name__}: {error}); copy the folder "
            "again, or make it anew."
        ) from None
    if call.op not in OPS:
        raise UsageError(
            f"{folder} calls the op {call.op!r}, which is not one of {', '.join(OPS)}; use the "
            "glm-portable that wrote it, or a newer one."
        )
    return stored


def _fill(folder: Path, stored: StoredCall) -> None:
    files = {}
    for who, tensors in {INPUTS: stored.call.tensors, **stored.results}.items():
        name = f"{who}.safetensors"
        data = save({key: _as_bits(tensor) for key, tensor in tensors.items()})
        (folder / name).write_bytes(data)
        kinds = {key: kind for key, tensor in tensors.items() if (kind := _kind(tensor))}
        files[name] = {"sha256": hashlib.sha256(data).hexdigest(), "kinds": kinds}
    header = {
        "schema": SCHEMA,
        "version": VERSION,
        "op": stored.call.op,
        "dtype": str(stored.dtype).removeprefix("torch."),
        "attributes": dict(stored.call.attributes),
        "about": dict(stored.about),
        "files": files,
    }
    text = json.dumps(header, indent=1, sort_keys=True, allow_nan=False) + "\n"
    (folder / JSON_FILE).write_text(text, encoding="utf-8")


def _header(folder: Path) -> dict[str, Any]:
    path = folder / JSON_FILE
    try:
        header = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(
            f"{folder} is no stored call: {JSON_FILE} cannot be read ({error.strerror})."
        ) from None
    except ValueError as error:
        raise UsageError(f"{path} is not JSON ({error}); copy the folder again.") from None
    if not isinstance(header, dict) or header.get("schema") != SCHEMA:
        raise UsageError(f"{path} does not describe a stored call; its schema is not {SCHEMA!r}.")
    if header.get("version") != VERSION:
        raise UsageError(
            f"{path} has version {header.get('version')!r} of the format, and version {VERSION} is "
            "known here; use the glm-portable that wrote it, or a newer one."
        )
    return header


def _tensors(folder: Path, name: str, about: Mapping[str, Any]) -> dict[str, Tensor]:
    path = folder / name
    if path.parent != folder or path.suffix != ".safetensors":
        raise ValueError(f"{name!r} is no file of this folder")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UsageError(f"{path} cannot be read ({error.strerror}); copy it again.") from None
    if hashlib.sha256(data).hexdigest() != about["sha256"]:
        raise UsageError(f"{path} is not the file that was written: copy it again.")
    try:
        found = load(data)
    except SafetensorError as error:
        raise UsageError(f"{path} is no safetensors file ({error}); make it anew.") from None
    kinds = about["kinds"]
    return {key: t.view(KINDS[kinds[key]]) if key in kinds else t for key, t in found.items()}


def _kind(tensor: Tensor) -> str | None:
    return next((name for name, dtype in KINDS.items() if dtype == tensor.dtype), None)


def _as_bits(tensor: Tensor) -> Tensor:
    tensor = tensor.detach().cpu()
    bits = tensor if _kind(tensor) is None else tensor.view(BITS[tensor.dtype.itemsize])
    return bits.clone(memory_format=torch.contiguous_format)
