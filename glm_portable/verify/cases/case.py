"""What a case is."""

import zlib
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from glm_portable.ops import Ops
from glm_portable.verify.call import Call, perform
from glm_portable.verify.cases.data import Source
from glm_portable.verify.suite.judge import verdict


@dataclass(frozen=True)
class Case:
    """One op on one kind of inputs, made anew from every seed.

    rounds_within: values that were computed are rounded to FP8 or INT8 on the way. In float32 the
    order of a sum decides which side of a tie one falls on, and then differs by a whole code: no
    multiple of plain PyTorch's error is a bound, and the case says something in BF16 alone.
    exact: no sum of it rounds in float32 in any order, so that a router's choice must be the exact
    one where the rule otherwise allows for rounding.
    twin: the case that is this one in the other dialect of FP8; a chip speaks one of the two.
    full: of the size of the real models, for `--full`.
    """

    op: str
    name: str
    make: Callable[[Source], Call]
    rounds_within: bool = False
    exact: bool = False
    twin: str = ""
    full: bool = False

    def __str__(self) -> str:
        return f"{self.op}: {self.name}"

    def call(self, seed: int = 0) -> Call:
        """Its inputs; 2^32 seeds, each a stream of its own in every case."""
        return self.make(Source(zlib.crc32(str(self).encode()) << 32 | seed & 0xFFFFFFFF))

    def run(self, ops: Ops, dtype: torch.dtype, seed: int = 0) -> dict[str, Tensor]:
        """Its results on a backend, on the host."""
        return perform(self.call(seed), ops, dtype)

    def findings(self, ops: Ops, dtype: torch.dtype, seed: int = 0) -> tuple[str, ...]:
        """What is wrong with a backend's results; nothing if they pass."""
        return verdict(self.call(seed), ops, dtype, self.exact).findings


def cost(call: Call) -> int:
    """About how many multiplications a call takes: what decides where it can be afforded."""
    t = call.tensors
    if call.op == "linear":
        return len(t["x"]) * t["w"].numel()
    if call.op == "experts":
        taken = t["experts"].numel()
        return taken * (t["gate_up"][0].numel() + t["down"][0].numel())
    if call.op == "attend":
        ends = [0, *t["query_ends"].tolist()]
        counts = [b - a for a, b in zip(ends, ends[1:], strict=False)]
        keys: int = sum(n * k for n, k in zip(counts, t["kv_lengths"].tolist(), strict=True))
        return 2 * keys * t["q"][0].numel()
    if call.op == "route":
        return t["x"].shape[0] * t["gate"].numel()
    return t["q" if call.op == "rope_store" else "x"].numel()
