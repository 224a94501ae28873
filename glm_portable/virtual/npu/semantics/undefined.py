"""Memory that an operator leaves as it found it."""

import torch
from torch import Tensor


def undefined(*shape: int, dtype: torch.dtype) -> Tensor:
    """A tensor to fill in part; what stays must show in any result that uses it."""
    value = float("nan") if dtype.is_floating_point else torch.iinfo(dtype).max
    return torch.full(shape, value, dtype=dtype)
