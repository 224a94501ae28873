"""The C++ files of this folder: built by the machine's compiler when first needed, and called.

The library is kept in the user's cache folder under a hash of everything that decides what it
holds. Its name carries the hash of its own bytes too, so that a damaged file is built anew.
"""

import ctypes
import hashlib
import logging
import os
import re
import subprocess
import tempfile
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from glm_portable.ops import KVCache, Weight

log = logging.getLogger(__name__)

FOLDER = Path(__file__).parent
SOURCES = [FOLDER / "native.cpp", FOLDER / "attention.cpp"]
HEADER = FOLDER / "lanes.h"
COMPILER = "c++"
FLAGS = ["-std=c++17", "-O3", "-march=native", "-fopenmp", "-fPIC", "-Wno-psabi"]
NEEDED = {"avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_bf16"}
HUGE_PAGE = 1 << 21

Pointer, Int = ctypes.c_void_p, ctypes.c_int64
SIGNATURES: dict[str, list[Any]] = {
    "packed_size": [Int] * 2,
    "advise": [Pointer, Int],
    "pack": [Pointer, *[Int] * 3, Pointer, ctypes.c_int],
    "pack_coded": [*[Pointer] * 3, *[Int] * 5, Pointer, ctypes.c_int],
    "linear": [*[Pointer] * 4, *[Int] * 3, ctypes.c_int],
    "experts": [*[Pointer] * 6, *[Int] * 5, ctypes.c_int],
    "scores": [*[Pointer] * 3, *[Int] * 3, ctypes.c_int],
    "attend": [*[Pointer] * 7, *[Int] * 6, ctypes.c_float, ctypes.c_int],
}


class Unavailable(Exception):
    """Why there is no native library on this machine, in words for the log."""


@dataclass(frozen=True)
class Matrices:
    """`count` packed BF16 weights of shape (n, r), in the layout that `native.cpp` describes."""

    calls: ctypes.CDLL
    data: Tensor
    count: int
    n: int
    r: int

    @classmethod
    def empty(cls, calls: ctypes.CDLL, count: int, n: int, r: int) -> "Matrices":
        """Room for them, in huge pages where the system gives some."""
        data = torch.empty(count, calls.packed_size(n, r), dtype=torch.bfloat16)
        if data.nbytes >= 2 * HUGE_PAGE:
            calls.advise(data.data_ptr(), data.nbytes)
        return cls(calls, data, count, n, r)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, e: int) -> "Matrices":
        return replace(self, data=self.data[e : e + 1], count=1)

    def fill(self, w_ENR: Tensor) -> None:
        """Lay plain weights out here."""
        w = w_ENR.contiguous()
        assert w.dtype == torch.bfloat16, f"{w.dtype=}"
        assert w.shape == (self.count, self.n, self.r), f"{w.shape=} {self.n=} {self.r=}"
        self.calls.pack(w.data_ptr(), *w.shape, self.data.data_ptr(), torch.get_num_threads())

    def fill_coded(self, w: Weight) -> None:
        """Lay FP8 or INT8 weights out here, dequantised panel by panel."""
        assert w.scale is not None and w.data.itemsize == 1 and w.dtype == torch.bfloat16
        data, scale = w.data.contiguous(), w.scale.float().contiguous()
        rows, columns = w.block or (1, self.r)
        blocks = self.count * -(-self.n // rows) * -(-self.r // columns)
        assert data.numel() == self.count * self.n * self.r and scale.numel() == blocks
        values = torch.arange(256, dtype=torch.uint8).view(data.dtype).float()
        self.calls.pack_coded(
            data.data_ptr(), values.data_ptr(), scale.data_ptr(), rows, columns,
            self.count, self.n, self.r, self.data.data_ptr(), torch.get_num_threads(),
        )  # fmt: skip

    def multiply(self, x_TR: Tensor, bias_N: Tensor | None = None) -> Tensor:
        """x @ w.T + bias, for a single matrix, all BF16: (T, N)."""
        x = x_TR.contiguous()
        bias = None if bias_N is None else bias_N.contiguous()
        assert self.count == 1 and x.dtype == torch.bfloat16, f"{self.count=} {x.dtype=}"
        assert x.shape[1] == self.r, f"{x.shape=} {self.r=}"
        assert bias is None or (bias.dtype == x.dtype and bias.shape == (self.n,)), f"{bias=}"
        out = torch.empty(len(x), self.n, dtype=torch.bfloat16)
        self.calls.linear(
            x.data_ptr(), self.data.data_ptr(), None if bias is None else bias.data_ptr(),
            out.data_ptr(), len(x), self.n, self.r, torch.get_num_threads(),
        )  # fmt: skip
        return out


def experts(
    x_TD: Tensor, gate_up: Matrices, down: Matrices, weights_TK: Tensor, experts_TK: Tensor
) -> Tensor:
    """The routed mixture (T, D) in one call; weights float32, experts int32 and below `count`."""
    x, weights, chosen = x_TD.contiguous(), weights_TK.contiguous(), experts_TK.contiguous()
    assert x.dtype == torch.bfloat16 and x.shape[1] == gate_up.r == down.n, f"{x.shape=}"
    assert weights.dtype == torch.float32 and chosen.dtype == torch.int32
    assert chosen.shape == weights.shape and len(chosen) == len(x), f"{chosen.shape=}"
    assert gate_up.n == 2 * down.r and gate_up.count == down.count
    out = torch.empty_like(x)
    gate_up.calls.experts(
        x.data_ptr(), gate_up.data.data_ptr(), down.data.data_ptr(), weights.data_ptr(),
        chosen.data_ptr(), out.data_ptr(), *chosen.shape, down.count, down.n, down.r,
        torch.get_num_threads(),
    )  # fmt: skip
    return out


def scores(calls: ctypes.CDLL, x_TD: Tensor, gate_ED: Tensor) -> Tensor:
    """The router's product x @ gate.T, x in BF16, the gate and the result (T, E) in float32."""
    x, gate = x_TD.contiguous(), gate_ED.contiguous()
    assert x.dtype == torch.bfloat16 and gate.dtype == torch.float32, f"{x.dtype=} {gate.dtype=}"
    assert x.shape[1] == gate.shape[1], f"{x.shape=} {gate.shape=}"
    out = torch.empty(len(x), len(gate), dtype=torch.float32)
    calls.scores(
        x.data_ptr(), gate.data_ptr(), out.data_ptr(), len(x), *gate.shape, torch.get_num_threads()
    )
    return out


def attend(
    calls: ctypes.CDLL,
    q_THC: Tensor,
    cache: KVCache,
    table_BP: Tensor,
    rows_T: Tensor,
    lengths_T: Tensor,
    scale: float,
) -> Tensor:
    """Token t over the first lengths_T[t] keys in the pages of row rows_T[t], both int32.

    Everything else is BF16, and the head size a multiple of 32.
    """
    q, table = q_THC.contiguous(), table_BP.contiguous()
    k, v = cache.k_PSGC, cache.v_PSGC
    assert q.dtype == k.dtype == v.dtype == torch.bfloat16 and q.shape[2] % 32 == 0
    assert k.is_contiguous() and v.is_contiguous() and k.shape == v.shape
    assert table.dtype == rows_T.dtype == lengths_T.dtype == torch.int32
    out = torch.empty_like(q)
    calls.attend(
        q.data_ptr(), k.data_ptr(), v.data_ptr(), table.data_ptr(), rows_T.data_ptr(),
        lengths_T.data_ptr(), out.data_ptr(), len(q), table.shape[1], *k.shape[1:3],
        *q.shape[1:], scale, torch.get_num_threads(),
    )  # fmt: skip
    return out


@cache
def library() -> ctypes.CDLL | None:
    """The loaded library, or None where it cannot be had; the log says which and why, once."""
    try:
        loaded = _open(cache_folder())
    except Unavailable as why:
        log.warning("The CPU backend multiplies with oneDNN, not its own kernel: %s.", why)
        return None
    log.info("The CPU backend multiplies BF16 with its own AVX512-BF16 kernel.")
    return loaded


def cache_folder() -> Path:
    """Where this user's programs keep what they can make again (XDG base directories)."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "glm-portable" / "native"


def _open(folder: Path) -> ctypes.CDLL:
    """Take the library from the folder, or build it; kept there if the folder can be written."""
    runtime = _openmp()
    key = _key(_processor(), runtime)
    for path in sorted(folder.glob(f"{key}-*.so")):
        if path.stem == f"{key}-{_digest(path.read_bytes())}":
            return _load(path)
    with tempfile.TemporaryDirectory() as scratch:
        built = _build(Path(scratch), runtime)
        return _load(_keep(built, folder, key))


def _processor() -> str:
    """What /proc/cpuinfo says of the first processor's abilities."""
    info = Path("/proc/cpuinfo")
    found = re.search(r"^flags\s*:(.*)$", info.read_text(), re.M) if info.exists() else None
    if found is None or not NEEDED <= set(found[1].split()):
        raise Unavailable("this processor has no AVX512-BF16")
    return found[1]


def _openmp() -> Path:
    """The OpenMP runtime PyTorch has loaded: two pools of threads would fight for the cores."""
    maps = Path("/proc/self/maps")
    lines = maps.read_text().splitlines() if maps.exists() else []
    names = {line.split(maxsplit=5)[-1] for line in lines}
    found = sorted(n for n in names if re.fullmatch(r".*/lib(gomp|iomp5|omp)\b[^/]*\.so[^/]*", n))
    if not found:
        raise Unavailable("PyTorch's OpenMP runtime was not found")
    return Path(next((n for n in found if "/torch/" in n or "/torch.libs/" in n), found[0]))


def _key(processor: str, runtime: Path) -> str:
    """A hash of the sources, the compiler, its options and the processor."""
    texts = [path.read_text() for path in (*SOURCES, HEADER)]
    parts = [*texts, _run([COMPILER, "--version"]), *FLAGS, str(runtime), processor]
    return _digest("\0".join(parts).encode())


def _build(scratch: Path, runtime: Path) -> Path:
    """Compile, then link with the runtime's own file instead of what -fopenmp would choose."""
    linked, compiled = scratch / "native.so", [scratch / f"{s.stem}.o" for s in SOURCES]
    for source, out in zip(SOURCES, compiled, strict=True):
        _run([COMPILER, *FLAGS, "-c", str(source), "-o", str(out)])
    _run([
        COMPILER, "-shared", "-Wl,-z,defs", *map(str, compiled), str(runtime),
        f"-Wl,-rpath,{runtime.parent}", "-o", str(linked),
    ])  # fmt: skip
    return linked


def _keep(built: Path, folder: Path, key: str) -> Path:
    """Move the library to the folder in one step, so that nobody sees a part of it."""
    data = built.read_bytes()
    kept = folder / f"{key}-{_digest(data)}.so"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as beside:
            (Path(beside) / kept.name).write_bytes(data)
            (Path(beside) / kept.name).replace(kept)
    except OSError as error:
        log.info("The kernel is built anew at every start, as %s: %s.", folder, error.strerror)
        return built
    return kept


def _load(path: Path) -> ctypes.CDLL:
    try:
        calls = ctypes.CDLL(str(path))
    except OSError as error:
        raise Unavailable(f"{path.name} cannot be loaded ({error})") from None
    for name, arguments in SIGNATURES.items():
        function = getattr(calls, name)
        function.argtypes = arguments
        function.restype = Int if name == "packed_size" else None
    return calls


def _run(command: list[str]) -> str:
    """What the command prints."""
    try:
        done = subprocess.run(command, check=True, capture_output=True, text=True)
    except OSError as error:
        raise Unavailable(f"there is no compiler {command[0]!r} ({error.strerror})") from None
    except subprocess.CalledProcessError as error:
        lines = (error.stderr or "").strip().splitlines() or ["it said nothing"]
        first = next((line for line in lines if "error" in line), lines[-1])
        raise Unavailable(f"{command[0]} failed: {first}") from None
    return done.stdout


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:32]
