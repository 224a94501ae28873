"""Ops of one backend on the inputs that another backend's ops had: tensor replacement.

Every op gets the recorded inputs, whatever the ops before it gave, and its own weights. So an op
that is wrong by itself shows, and one that only passes an error on does not. The model's code is
handed the recorded results in return: if it then asks for anything else than the recorded model
did, the fault lies outside of the ops.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from glm_portable.ops import KVCache, Step
from glm_portable.verify.bisect.record import (
    RESULTS,
    Arguments,
    Record,
    Wrapped,
    host_copy,
    named_results,
)
from glm_portable.verify.call import Call, Tensors, step_tensors
from glm_portable.verify.metrics import distance
from glm_portable.verify.watch import Watched

REPLACED = {
    "linear": ("x",),
    "rms_norm": ("x", "residual"),
    "silu_mul": ("x",),
    "rope_store": ("q", "k", "v", "cos", "sin"),
    "attend": ("q",),
    "route": ("x",),
    "experts": ("x", "weights", "experts"),
}
"""What is replaced: activations. Weights are each backend's own."""
PAGES = ("k_pages", "v_pages")
ANGLE = 2.0**-21
"""By which an angle may differ between two devices, for each position: their powers differ."""


@dataclass(frozen=True)
class Heard:
    """A recorded call on another backend.

    results: with the recorded inputs. kernels: seen to run for it. astray: what the model's code
    gave it that the recorded model's did not, one sentence each. coded: where the backend put more
    than the numbers into its input (codes for this very product): the same op on its own input, as
    a call, and its results.
    """

    record: Record
    results: Tensors
    kernels: Mapping[str, int]
    astray: Sequence[str] = ()
    coded: tuple[Call, Tensors] | None = None


class Detour(Exception):
    """The model's code calls another op than the recorded one did; the message says which."""


class Taught(Wrapped):
    """heard: every call so far, in order."""

    def __init__(self, watched: Watched) -> None:
        super().__init__(watched)
        self.watched = watched
        self.heard: list[Heard] = []
        self._own: dict[int, tuple[Tensor, Tensor]] = {}
        self._script: list[Record] = []

    def start(self, script: Iterable[Record]) -> None:
        """The calls of the next step."""
        self._script = list(script)
        self._own.clear()

    def perform(self, op: str, arguments: Arguments, run: Callable[[Arguments], Any]) -> Any:
        expected = self._script[0].call.op if self._script else "nothing more"
        if op != expected:
            raise Detour(f"{op} is called where the other model calls {expected}")
        record, given = self._script.pop(0), dict(arguments)
        astray = differences(record.call, arguments)
        taught = arguments | self._replaced(record.call, arguments)
        before = self.watched.kernels + self.watched.products
        with self.watched.watching():
            found = run(taught)
        kernels = self.watched.kernels + self.watched.products - before
        results = named_results(op, found, taught)
        coded = self._coded(record, given, taught, run)
        self.heard.append(Heard(record, results, kernels, astray, coded))
        return self._handed_back(record, found)

    def _replaced(self, call: Call, arguments: Arguments) -> Arguments:
        """The recorded activations on this backend; pages are overwritten where they lie."""
        cache = arguments.get("cache")
        if isinstance(cache, KVCache):
            _fill(cache, call.tensors)
        names = [name for name in REPLACED[call.op] if arguments[name] is not None]
        return {n: call.tensors[n].to(arguments[n].device, arguments[n].dtype) for n in names}

    def _coded(
        self, record: Record, given: Arguments, taught: Arguments, run: Callable[[Arguments], Any]
    ) -> tuple[Call, Tensors] | None:
        own = self._own.pop(id(given.get("x")), None)
        if own is None:
            return None
        found = run(taught | {"x": own[1]})
        tensors = {**record.call.tensors, "x": host_copy(own[1])}
        return replace(record.call, tensors=tensors), named_results(record.call.op, found, taught)

    def _handed_back(self, record: Record, found: Any) -> Any:
        """What the recorded op returned; pages are filled before every op that reads them."""
        own = found if isinstance(found, tuple) else (found,)
        names = RESULTS.get(record.call.op, ("y",))
        back = [record.results[n].to(x.device, x.dtype) for n, x in zip(names, own, strict=True)]
        for mine, theirs in zip(own, back, strict=True):
            if type(mine) is not Tensor:
                self._own[id(theirs)] = theirs, mine
        return tuple(back) if isinstance(found, tuple) else back[0]


def differences(call: Call, arguments: Arguments) -> list[str]:
    """Where the arguments are not those of the call, weights and pages apart."""
    found, dtype = [], None
    step = arguments.get("step")
    tensors = step_tensors(step) if isinstance(step, Step) else {}
    tensors |= {n: t for n, t in arguments.items() if isinstance(t, Tensor)}
    for name, tensor in tensors.items():
        dtype = tensor.dtype
        other = call.tensors.get(name)
        if other is None or other.shape != tensor.shape:
            found.append(f"{name} has the shape {tuple(tensor.shape)}")
        elif not _alike(name, host_copy(tensor), other.to(dtype), call.tensors):
            off = distance(host_copy(tensor), other).error
            found.append(f"{name} differs by {off:.3g} of its size")
    for name, value in arguments.items():
        if isinstance(value, float) and value != call.attributes.get(name):
            found.append(f"{name} is {value:g}, not {call.attributes.get(name)}")
    missing = [n for n, v in arguments.items() if v is None and n in call.tensors]
    return found + [f"{name} is missing" for name in missing]


def differing(mine: Sequence[Tensor], theirs: Sequence[Tensor]) -> str | None:
    """How the results of a part differ, though all its ops handed back the same; None if not."""
    for x, y in zip(mine, theirs, strict=True):
        if not _alike("", x, y, {}):
            return f"the result differs by {distance(x, y).error:.3g} of its size"
    return None


def _alike(name: str, mine: Tensor, theirs: Tensor, tensors: Tensors) -> bool:
    if not mine.is_floating_point():
        return torch.equal(mine, theirs)
    allowed = torch.finfo(mine.dtype).eps / 4
    if name in ("cos", "sin"):
        allowed += tensors["positions"].max().item() * ANGLE
    off = distance(mine, theirs)
    return off.finite and off.error <= allowed


def _fill(cache: KVCache, tensors: Tensors) -> None:
    for pages, name in zip((cache.k_PSGC, cache.v_PSGC), PAGES, strict=True):
        pages.copy_(tensors[name])
