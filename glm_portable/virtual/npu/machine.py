"""A virtual NPU: which chip it is, which of torch_npu's operators it ran, and how they are run.

The semantics of `semantics/` are registered with torch's dispatcher behind torch_npu's own schemas,
for tensors on the host. Every call is first given to torch_npu's Meta kernel, on the same
arguments, and what it declares (shapes and types of all outputs) must be what came out. An operator
without semantics is not registered, and torch refuses it by name.
"""

import functools
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from glm_portable.backends.ascend.chip import Chip
from glm_portable.virtual.npu.refusal import Refusal
from glm_portable.virtual.npu.semantics import KERNELS, WITHOUT_META

_active: ContextVar["Machine | None"] = ContextVar("active virtual NPU", default=None)


class Machine:
    """One virtual chip. `ops` stands where a program has torch.ops.npu."""

    def __init__(self, soc: str) -> None:
        """The stand-ins must be loaded (`standins.load`)."""
        self.chip = Chip.named(soc)
        self.ran: Counter[str] = Counter()
        self.ops = Operators(self)
        _register()

    @contextmanager
    def active(self) -> Iterator[None]:
        """Within it, operators called from this thread run on this chip."""
        token = _active.set(self)
        try:
            yield
        finally:
            _active.reset(token)


class Operators:
    """torch.ops.npu, as run by one machine."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine

    def __getattr__(self, name: str) -> Callable[..., Any]:
        op = getattr(torch.ops.npu, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            with self._machine.active():
                return op(*args, **kwargs)

        return call


@functools.cache
def _register() -> Any:
    """Once a process; the kernels live as long as the library that is returned."""
    library: Any = torch.library.Library("npu", "IMPL", "CPU")  # type: ignore[no-untyped-call]
    for name, semantics in KERNELS.items():
        packet, _, overload = name.partition(".")
        op = getattr(getattr(torch.ops.npu, packet), overload or "default")
        library.impl(name, _behind(op, packet, semantics))
    return library


def _behind(op: Any, name: str, semantics: Callable[..., Any]) -> Callable[..., Any]:
    """The kernel that torch calls for an operator on host tensors."""

    def kernel(*args: Any, **kwargs: Any) -> Any:
        machine = _active.get()
        if machine is None:
            raise Refusal(f"{name}: no virtual NPU is active; call it through Machine.ops.")
        declared = None
        if name not in WITHOUT_META:
            meta_args, meta_kwargs = tree_map(_meta, (args, kwargs))
            declared = op(*meta_args, **meta_kwargs)
        result = semantics(machine.chip, *args, **kwargs)
        if declared is not None and _outline(declared) != _outline(result):
            raise AssertionError(
                f"{name}: torch_npu declares {_outline(declared)}, the semantics gave "
                f"{_outline(result)}"
            )
        machine.ran[name] += 1
        return result

    return kernel


def _meta(value: Any) -> Any:
    if not isinstance(value, Tensor):
        return value
    return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="meta")


def _outline(result: Any) -> list[tuple[tuple[int, ...], torch.dtype]]:
    outputs = result if isinstance(result, tuple | list) else [result]
    return [(tuple(t.shape), t.dtype) for t in outputs if isinstance(t, Tensor)]
