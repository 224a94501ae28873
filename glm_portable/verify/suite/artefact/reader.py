"""Tensors of this suite as NumPy arrays, BF16 and FP8 as float32: python reader.py FILE."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import deserialize

KINDS = dict(F64="<f8", F32="<f4", F16="<f2", I64="<i8", I32="<i4", I8="i1", U8="u1")


def fp8(bias: int, *nan: int) -> Any:
    code = np.arange(128)
    power = 2.0 ** (np.maximum(code // 8, 1) - bias)
    values = (np.where(code < 8, 0, 1) + code % 8 / 8) * power
    values = np.concatenate([values, -values]).astype("f4")
    values[list(nan)] = np.nan
    return values


FP8 = {"F8_E4M3": fp8(7, 127, 255), "F8_E4M3FNUZ": fp8(8, 128)}


def array(kind: str, data: bytes) -> Any:
    if kind == "BF16":
        return (np.frombuffer(data, "<u2").astype("<u4") << 16).view("<f4")
    return FP8[kind][np.frombuffer(data, "u1")] if kind in FP8 else np.frombuffer(data, KINDS[kind])


def read(path: Path) -> dict[str, Any]:
    tensors: Any = deserialize(path.read_bytes())  # type: ignore[no-untyped-call]
    return {name: array(t["dtype"], bytes(t["data"])).reshape(t["shape"]) for name, t in tensors}


if __name__ == "__main__":
    for name, values in read(Path(sys.argv[1])).items():
        print(name, *values.shape, values.dtype)
