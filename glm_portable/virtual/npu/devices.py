"""npu:0, npu:1, ...: tensors of torch_npu's own device type, whose memory is the host's.

Within `Devices` every operator that computes on such tensors runs on the same memory seen as host
tensors, npu:: operators among them; tensors of two devices in one call are an error, as on the
chip. Outside of it an operator fails in the stand-in libraries.
"""

from collections import Counter
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from glm_portable.virtual.npu.layout import FractalNz
from glm_portable.virtual.npu.machine import Machine
from glm_portable.virtual.npu.refusal import Refusal

aten = torch.ops.aten
ALLOCATE = {
    aten.empty.memory_format, aten.empty_strided.default, aten.empty_like.default,
    aten.new_empty.default, aten.new_empty_strided.default,
    aten.detach.default, aten.alias.default, aten.is_pinned.default,
}  # fmt: skip
"""What torch_npu does itself, without an operator of the chip."""
MAY_COPY = {"aten::to", "aten::contiguous", "aten::reshape", "aten::flatten", "aten::_to_copy",
            "aten::_reshape_copy", "aten::numpy_T"}  # fmt: skip
"""Marked as views, although their result may be new memory."""
BETWEEN_DEVICES = {"aten::copy_", "aten::_to_copy", "aten::to"}


class Devices(TorchDispatchMode):
    """The devices of one machine. ran: how often each operator ran on them."""

    def __init__(self, machine: Machine) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.machine = machine
        self.ran: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        name = func._schema.name
        tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        here = [t.device for t in tensors if t.device.type == "npu"]
        asked = next((d for d in map(_device, [*args, *kwargs.values()]) if d is not None), None)
        if not here and (asked is None or asked.type != "npu"):
            return func(*args, **kwargs)
        if func in ALLOCATE or (func.is_view and name not in MAY_COPY):
            return func(*args, **kwargs)
        if name not in BETWEEN_DEVICES:
            _check_one_device(name, tensors)
        self.ran[name] += 1
        target = args[0].device if name == "aten::copy_" else asked or here[0]
        shared: dict[int, Tensor] = {}

        def on_host(value: Any) -> Any:
            if not isinstance(value, Tensor):
                found = _device(value)
                return torch.device("cpu") if found is not None else value
            if value.device.type != "npu":
                return value
            alias = _host(value)
            shared[id(alias)] = value
            return alias

        host_args, host_kwargs = tree_map(on_host, (args, kwargs))
        with self.machine.active():
            result = func(*host_args, **host_kwargs)
        return tree_map(lambda value: _back(value, target, shared), result)


def _device(value: Any) -> torch.device | None:
    return value if isinstance(value, torch.device) else None


def _check_one_device(name: str, tensors: list[Tensor]) -> None:
    """Zero-dimensional host tensors are numbers and may join."""
    found = {str(t.device) for t in tensors if t.dim() or t.device.type == "npu"}
    if len(found) > 1:
        raise Refusal(f"{name}: its tensors are on {', '.join(sorted(found))}, but must be on one.")


def _host(value: Tensor) -> Tensor:
    """The same memory as a host tensor."""
    if isinstance(value, FractalNz):
        return FractalNz(_host(value.rows))
    memory = value.untyped_storage()
    storage = torch._C._construct_storage_from_data_pointer(
        memory.data_ptr(), torch.device("cpu"), memory.nbytes()
    )
    alias = torch.empty(0, dtype=value.dtype)
    return alias.set_(storage, value.storage_offset(), value.shape, value.stride())


def _back(value: Any, target: torch.device, shared: dict[int, Tensor]) -> Any:
    """A result where it belongs: an argument changed in place stays itself."""
    if not isinstance(value, Tensor):
        return value
    if target.type != "npu":
        return value.clone() if id(value) in shared else value
    if id(value) in shared:
        return shared[id(value)]
    if isinstance(value, FractalNz):
        return FractalNz(_moved(value.rows, target))
    return _moved(value, target)


def _moved(value: Tensor, target: torch.device) -> Tensor:
    made = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=target)
    if value.numel():
        _host(made).copy_(value)
    return made
