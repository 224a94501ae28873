"""Ops that do what others do and write every call down, as data that runs alone.

Weights are written down as the checkpoint holds them, so that another backend can pack them. They
are kept on the host from `pack` on and shared by all calls: one part of the model at a time keeps
the memory within one layer's weights.
"""

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from glm_portable.ops import KVCache, Ops, Step, Weight
from glm_portable.verify.call import OPS, Call, Tensors, routing_attributes, step_tensors
from glm_portable.verify.watch import Watched

Arguments = dict[str, Any]
LETTERS = re.compile(r"_[A-Z0-9]+$")
RESULTS = {
    "rms_norm": ("y", "sum"),
    "rope_store": ("q",),
    "route": ("weights", "experts"),
}
"""Names of what an op returns, if it is not one "y"."""
SIGNATURES = {op: inspect.signature(getattr(Ops, op)) for op in OPS}


@dataclass(frozen=True)
class Record:
    """One call where it happened. step: which of the run. nth: which call of that step and part.

    kernels: what was seen to run for it, and how often.
    """

    step: int
    nth: int
    call: Call
    results: Tensors
    kernels: Mapping[str, int] = field(default_factory=dict)


class Wrapped:
    """`Ops` whose every op goes through `perform`, with its arguments by the names of `Call`."""

    def __init__(self, ops: Any) -> None:
        self.ops = ops

    def __getattr__(self, name: str) -> Any:
        body = getattr(self.ops, name)
        if name not in OPS:
            return body

        def call(*positional: Any, **by_name: Any) -> Any:
            bound = SIGNATURES[name].bind(None, *positional, **by_name)
            bound.apply_defaults()
            named = {LETTERS.sub("", n): v for n, v in bound.arguments.items() if n != "self"}
            return self.perform(name, named, lambda a: body(*a.values()))

        return call

    def perform(self, op: str, arguments: Arguments, run: Callable[[Arguments], Any]) -> Any:
        """What the op returns. run: the op itself; arguments are in the order it takes them."""
        return run(arguments)


class Recorded(Wrapped):
    """records: the calls since the last `start`, in order."""

    def __init__(self, watched: Watched) -> None:
        super().__init__(watched)
        self.watched = watched
        self.records: list[Record] = []
        self._originals: dict[int, tuple[Weight, Weight]] = {}
        self._step = self._nth = 0

    def start(self, step: int) -> None:
        self._step, self._nth = step, 0

    def pack(self, w: Weight) -> Weight:
        packed: Weight = self.ops.pack(w)
        # The packed one is held too: another weight must not get its id.
        self._originals[id(packed)] = packed, on_host(w)
        return packed

    def perform(self, op: str, arguments: Arguments, run: Callable[[Arguments], Any]) -> Any:
        call = as_call(op, arguments, lambda w: self._originals[id(w)][1])
        before = self.watched.kernels + self.watched.products
        with self.watched.watching():
            found = run(arguments)
        kernels = self.watched.kernels + self.watched.products - before
        results = named_results(op, found, arguments)
        self.records.append(Record(self._step, self._nth, call, results, kernels))
        self._nth += 1
        return found


def as_call(op: str, arguments: Arguments, original: Callable[[Weight], Weight]) -> Call:
    """Arguments as data on the host, copied: a backend may write over its tensors afterwards.

    original: the weight that a packed one was made from. `feeds` changes no number and is left out.
    """
    tensors: dict[str, Tensor] = {}
    attributes: dict[str, Any] = {}
    for name, value in arguments.items():
        if name == "feeds" or value is None:
            continue
        if isinstance(value, Tensor):
            tensors[name] = host_copy(value)
        elif isinstance(value, Weight):
            _put_weight(name, original(value), tensors, attributes)
        elif isinstance(value, KVCache):
            tensors |= _pages(value)
            attributes |= {"k_scale": value.k_scale, "v_scale": value.v_scale}
        elif isinstance(value, Step):
            tensors |= {n: host_copy(t) for n, t in step_tensors(value).items()}
        elif name == "cfg":
            attributes |= routing_attributes(value)
        else:
            attributes[name] = value
    return Call(op, tensors, attributes)


def named_results(op: str, found: Any, arguments: Arguments) -> dict[str, Tensor]:
    """Results by the names of `Call`, on the host, with the pages that `rope_store` wrote to."""
    names = RESULTS.get(op, ("y",))
    values: Sequence[Tensor] = found if isinstance(found, tuple) else (found,)
    results = {name: host_copy(value) for name, value in zip(names, values, strict=True)}
    return results | (_pages(arguments["cache"]) if op == "rope_store" else {})


def host_copy(tensor: Tensor) -> Tensor:
    """A plain tensor on the host that nobody else holds."""
    return tensor.detach().as_subclass(Tensor).to("cpu", copy=True)


def on_host(w: Weight) -> Weight:
    scale = None if w.scale is None else w.scale.cpu()
    return replace(w, data=w.data.cpu(), scale=scale)


def _put_weight(
    name: str, w: Weight, tensors: dict[str, Tensor], attributes: dict[str, Any]
) -> None:
    tensors[name] = w.data
    if w.scale is not None:
        tensors[f"{name}_scale"] = w.scale
        attributes["block"] = None if w.block is None else list(w.block)
        attributes["dynamic_activations"] = w.dynamic_activations


def _pages(cache: KVCache) -> dict[str, Tensor]:
    return {"k_pages": host_copy(cache.k_PSGC), "v_pages": host_copy(cache.v_PSGC)}
