"""Digests of weights as a device holds them: whether a bit of them has changed since the last time.

A tensor's bytes are read as 64-bit integers. Each block of `WORDS` of them is summed, wrapping
around, and the sums are added up, each times an odd number that tells its place. Such sums are
exact and independent of their order, so the same bytes give the same digest on any device, and they
need no copy of a weight in another type: torch sums int64 as it is, and all else as int64.

No change of a single integer escapes, and an exchange of blocks only if their sums are equal but
for a large power of two. An exchange within a block (4 KiB) does, and so may changes that cancel
each other.
"""

from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from glm_portable.ops import Ops, Weight, readable

Digests = dict[str, list[int]]
"""By a tensor's name: of each of its experts, if it holds one row an expert, or one of all."""

WORDS = 512
"""In a block: the sums take a small part of what is read, and of the memory."""
BYTES = 8


def digests(ops: Ops, name: str, value: Any, classes: tuple[type, ...], experts: int) -> Digests:
    """Of all tensors in a value, each once, by their names behind `name`.

    Looked for in lists, dataclasses and objects of these classes. experts: how many this rank has.
    """
    found: dict[str, Tensor] = {}
    seen: set[int] = set()
    for path, held in _tensors(name, value, classes):
        x = readable(ops, held)
        # A copy's address is free for the next one.
        place = x.data_ptr() if x is held else id(held)
        if place not in seen:
            seen.add(place)
            found[path] = digest(x, experts if x.dim() and len(x) == experts else 1)
    if not found:
        return {}
    every = iter(torch.cat(list(found.values())).tolist())  # one wait for the device
    return {path: [next(every) for _ in range(len(x))] for path, x in found.items()}


def digest(x: Tensor, parts: int = 1) -> Tensor:
    """Of each of so many equal parts of a tensor: (parts,) int64, on its device."""
    data = x.contiguous().flatten().view(torch.uint8).view(parts, -1)
    odd = data.shape[1] % BYTES
    if odd or data.storage_offset() % BYTES:  # copied; matrices of real models are neither
        data = F.pad(data, (0, BYTES - odd if odd else 0))
    words = data.view(torch.int64)
    blocks = words.shape[1] // WORDS
    body, rest = words[:, : blocks * WORDS], words[:, blocks * WORDS :]
    sums = torch.cat(
        [torch.unflatten(body, 1, (blocks, WORDS)).sum(-1), rest.sum(-1, keepdim=True)], dim=1
    )
    return (sums * torch.arange(1, 2 * sums.shape[1], 2, device=x.device)).sum(-1)


def _tensors(name: str, value: Any, classes: tuple[type, ...]) -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        if value.device.type != "meta" and value.numel():
            yield name, value
    elif isinstance(value, list | tuple):
        for i, one in enumerate(value):
            yield from _tensors(f"{name}[{i}]", one, classes)
    elif isinstance(value, Weight):
        # First what the backend has made of it, which may be wider than what it shows as `data`.
        for field in ("packed", "data", "scale"):
            yield from _tensors(f"{name}.{field}", getattr(value, field), classes)
    elif isinstance(value, dict) or isinstance(value, classes):
        inside = value if isinstance(value, dict) else vars(value)
        for key, one in inside.items():
            yield from _tensors(f"{name}.{key}" if name else key, one, classes)
    elif is_dataclass(value):
        for f in fields(value):
            yield from _tensors(f"{name}.{f.name}", getattr(value, f.name), classes)
