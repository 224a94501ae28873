"""What a backend really did: kernels it started, matrix products it left to torch, its routing."""

import copy
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from glm_portable.config import ModelConfig
from glm_portable.kernels.launch import observed
from glm_portable.ops import Ops

PRODUCTS = {"linear", "mm", "addmm", "bmm", "matmul", "_scaled_mm", "_grouped_mm"}


@dataclass(frozen=True)
class Routing:
    """One call of a router: its input and what it chose, on the host."""

    x_TD: Tensor
    experts_TK: Tensor


class Watched:
    """`Ops` that do what others do, and remember it.

    kernels: launches of each kernel of `kernels/`. products: matrix products by torch's own
    operators. routings: the router's calls, in order.
    """

    def __init__(self, ops: Ops) -> None:
        self._ops = copy.copy(ops) if hasattr(ops, "launch") else ops
        self.kernels: Counter[str] = Counter()
        self.products: Counter[str] = Counter()
        self.routings: list[Routing] = []
        if hasattr(self._ops, "launch"):
            self._ops.launch, self.kernels = observed(self._ops.launch)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._ops, name)

    def watching(self) -> "TorchDispatchMode":
        """Within it, torch's matrix products are counted."""
        return _Products(self.products)

    def route(
        self, x_TD: Tensor, gate_ED: Tensor, bias_E: Tensor, cfg: ModelConfig
    ) -> tuple[Tensor, Tensor]:
        weights, experts = self._ops.route(x_TD, gate_ED, bias_E, cfg)
        self.routings.append(Routing(x_TD.cpu(), experts.cpu()))
        return weights, experts


class _Products(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves it so
    def __init__(self, seen: Counter[str]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch leaves it so
        self._seen = seen

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        name = func.name().partition("::")[2].partition(".")[0]
        if name in PRODUCTS:
            self._seen[name] += 1
        return func(*args, **(kwargs or {}))
