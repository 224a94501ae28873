"""What happens below the ops: torch's own calls, watched or made adverse."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

ALLOCATIONS = ("aten.empty.memory_format", "aten.empty_strided.default", "aten.new_empty.default")


class Filled(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch has no types here
    """Memory that comes unset holds `value` (integers: the largest), as other data would lie in."""

    def __init__(self, value: float) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # as above
        self.value = value

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if str(func) in ALLOCATIONS:
            _fill(result, self.value)
        return result


def _fill(tensor: Tensor, value: float) -> None:
    if tensor.dtype.is_floating_point:
        tensor.view(tensor.dtype).copy_(torch.full((), value).to(tensor.dtype).expand(tensor.shape))
    else:
        tensor.fill_(torch.iinfo(tensor.dtype).max if value != value else int(value))
