"""`int? dtype` arguments: the dispatcher hands kernels torch's own number of a dtype."""

import importlib
from typing import cast

import torch


def of_argument(value: int | torch.dtype | None) -> torch.dtype | None:
    """The dtype that a number, or a dtype, of an operator's argument means."""
    if value is None or isinstance(value, torch.dtype):
        return value
    table = importlib.import_module("torch_npu.op_plugin.meta._meta_registrations").TORCH_DTYPE_MAP
    dtypes = (dtype for dtype, number in table.items() if number == value)
    return cast(torch.dtype, next(dtypes))
