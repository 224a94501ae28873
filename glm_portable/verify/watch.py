"""What a backend really did: kernels it started, matrix products it left to torch, its routing."""

import copy
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from glm_portable.backends.reference import mix
from glm_portable.config import ModelConfig
from glm_portable.errors import UsageError
from glm_portable.kernels.launch import observed
from glm_portable.ops import Ops, Weight

PRODUCTS = {"linear", "mm", "addmm", "bmm", "matmul", "_scaled_mm", "_grouped_mm"}
TORCHS_OWN = {"aten", "prim", "prims", "_c10d_functional", "c10d", "profiler"}
OWN_KERNELS = ("attend", "experts")
"""Ops that a device's backend may never leave to the reference (dense products may be torch's)."""


@dataclass(frozen=True)
class Routing:
    """One call of a router: its input and what it chose, on the host."""

    x_TD: Tensor
    experts_TK: Tensor


class Refused(UsageError):
    """The backend does not take a weight of this format."""


class Watched:
    """`Ops` that do what others do, and remember it.

    kernels: launches of each kernel of `kernels/`, and of operators that are not torch's own.
    products: matrix products by torch's own operators. idle: calls of OWN_KERNELS that started
    none. All three count within `watching` alone. routings: the router's calls, in order.
    replayed: what the next calls of the router must choose, (T, K) each; see `replay`.
    """

    def __init__(self, ops: Ops) -> None:
        self._ops = copy.copy(ops) if hasattr(ops, "launch") else ops
        self.kernels: Counter[str] = Counter()
        self.products: Counter[str] = Counter()
        self.idle: Counter[str] = Counter()
        self.routings: list[Routing] = []
        self.replayed: list[Tensor] = []
        self._counting = False
        if hasattr(self._ops, "launch"):
            self._ops.launch, self.kernels = observed(self._ops.launch)

    def _operator(self, library: str, name: str) -> None:
        if library not in TORCHS_OWN:
            self.kernels[name] += 1
        elif name in PRODUCTS:
            self.products[name] += 1

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._ops, name)
        return self._counted(name, found) if name in OWN_KERNELS else found

    def pack(self, w: Weight) -> Weight:
        try:
            return self._ops.pack(w)
        except UsageError as error:
            raise Refused(str(error)) from error

    @property
    def on_device(self) -> bool:
        """Whether this is a device's backend, whose kernels must be seen, real or simulated."""
        return hasattr(self._ops, "launch") or self._ops.device.type != "cpu"

    def missing(self) -> list[str]:
        """What a silent fallback leaves to be seen, one sentence a finding."""
        if not self.on_device:
            return []
        if not self.kernels:
            return ["no kernel of the backend was seen to run: it fell back in silence"]
        return [f"{n} calls of {op} started no kernel" for op, n in sorted(self.idle.items())]

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Within it, what runs is counted."""
        self._counting = True
        try:
            with Operators(self._operator):
                yield
        finally:
            self._counting = False

    def route(
        self, x_TD: Tensor, gate_ED: Tensor, bias_E: Tensor, cfg: ModelConfig
    ) -> tuple[Tensor, Tensor]:
        weights, experts = self._ops.route(x_TD, gate_ED, bias_E, cfg)
        self.routings.append(Routing(x_TD.cpu(), experts.cpu()))
        if self.replayed:
            return replay(self.replayed.pop(0), x_TD, gate_ED, cfg, weights, experts)
        return weights, experts

    def _counted(self, name: str, op: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(op)
        def call(*arguments: Any, **named: Any) -> Any:
            before = self.kernels.total()
            result = op(*arguments, **named)
            if self._counting and self.kernels.total() == before:
                self.idle[name] += 1
            return result

        return call


def replay(
    given_TK: Tensor,
    x_TD: Tensor,
    gate_ED: Tensor,
    cfg: ModelConfig,
    weights_TK: Tensor,
    experts_TK: Tensor,
) -> tuple[Tensor, Tensor]:
    """A router's result with the given experts: its own where it chose these, in any order.

    So one flip does not change all that follows, and each layer can be judged by itself. A row
    given as -1 is free.
    """
    given = given_TK.to(experts_TK.device, experts_TK.dtype)
    other = (given.sort(-1).values != experts_TK.sort(-1).values).any(-1) & (given[:, 0] >= 0)
    if not other.any():
        return weights_TK, experts_TK
    weights, experts = weights_TK.clone(), experts_TK.clone()
    wide = torch.promote_types(x_TD.dtype, torch.float32)
    scores = (x_TD[other].to(wide) @ gate_ED.to(wide).T).sigmoid()
    experts[other] = given[other]
    weights[other] = mix(scores, given[other].long(), cfg).to(weights.dtype)
    return weights, experts


class Operators(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves it so
    """Within it, `seen(library, name)` is told of every operator that torch dispatches."""

    def __init__(self, seen: Callable[[str, str], None]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch leaves it so
        self._seen = seen

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        library, _, name = func.name().partition("::")
        self._seen(library, name.partition(".")[0])
        return func(*args, **(kwargs or {}))
