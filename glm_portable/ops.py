"""The dispatch interface: everything a chip must provide to run GLM-4.5.

A backend is a module in `glm_portable/backends/` with the functions of `Ops`; one that must find
its device first has a function `connect` instead, which returns an object with them. The meaning of
each is the body of the same name in `backends/reference.py`; a backend that has nothing better for
an op imports it from there, where a reader can see it.

Shape letters, used as suffixes of tensor names:

    T  tokens in the step        B  sequences in the step     E  routed experts
    D  hidden size               P  KV pages                  K  experts per token
    H  query heads               S  slots per KV page         F  expert (or MLP) width
    G  key/value heads           V  vocabulary                N, R  out and in features
    C  head size
"""

import importlib
import math
import pkgutil
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from operator import add
from types import ModuleType
from typing import Any, Protocol, cast

import numpy as np
import torch
from torch import Tensor

from glm_portable.config import ModelConfig
from glm_portable.errors import UsageError

_ALIGNMENT = 4
"""Of int32: 16 bytes, from which on a compiled kernel reads several numbers at once."""


@dataclass(frozen=True)
class Weight:
    """A linear weight as the checkpoint holds it, or as a backend's `pack` has laid it out.

    data: (N, R), or (E, N, R) for the experts of a layer; float8_e4m3fn or int8 when quantised.
    dtype: the type of the activations it multiplies, and of the result.
    scale: float32; (..., N, 1) when `block` is None, else one number a block of `block` rows and
        columns: (..., ceil(N / rows), ceil(R / columns)). None when `data` is not quantised.
    dynamic_activations: the checkpoint was calibrated for activations quantised per token.
    packed: whatever the backend wants to keep; nobody else looks at it, but that `digest.py` reads
        the tensors in it.
    """

    data: Tensor
    dtype: torch.dtype
    scale: Tensor | None = None
    block: tuple[int, int] | None = None
    dynamic_activations: bool = False
    packed: Any = None

    def dequantize(self, dtype: torch.dtype | None = None) -> Tensor:
        """The plain weight, data * scale rounded once: same shape, in `dtype` or `self.dtype`."""
        dtype = dtype or self.dtype
        if self.scale is None:
            return self.data.to(dtype)
        wide = torch.promote_types(dtype, torch.float32)
        return (self.data.to(wide) * self.scale_per_element().to(wide)).to(dtype)

    def scale_per_element(self) -> Tensor:
        """`scale` in a shape that broadcasts against `data`."""
        assert self.scale is not None
        if self.block is None:
            return self.scale
        n, r = self.data.shape[-2:]
        rows = self.scale.repeat_interleave(self.block[0], dim=-2)[..., :n, :]
        return rows.repeat_interleave(self.block[1], dim=-1)[..., :r]


@dataclass(frozen=True)
class KVCache:
    """Keys and values of one layer in pages of S slots; slot number = page * S + offset.

    k_scale and v_scale: each number in the pages stands for itself times its scale. They serve
    FP8 pages; `rope_store` divides by them and keeps what is too large at the largest FP8.
    """

    k_PSGC: Tensor
    v_PSGC: Tensor
    k_scale: float = 1.0
    v_scale: float = 1.0

    @classmethod
    def allocate(
        cls,
        config: ModelConfig,
        pages: int,
        page_size: int,
        dtype: torch.dtype,
        device: torch.device,
        k_scale: float = 1.0,
        v_scale: float = 1.0,
    ) -> "KVCache":
        """Zeroed pages for one layer: what a mask hides is multiplied by 0 and must be finite."""
        shape = (pages, page_size, config.num_key_value_heads, config.head_dim)
        k, v = (_zeros(shape, dtype, device) for _ in range(2))
        return cls(k, v, k_scale, v_scale)


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """On the host numpy's zeros, which take memory page by page when first written to."""
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    return (
        torch.from_numpy(np.zeros(math.prod(shape) * dtype.itemsize, np.uint8))
        .view(dtype)
        .view(shape)
    )


@dataclass(frozen=True)
class Step:
    """Which tokens one forward pass computes, for any mix of prefill, chunk, decode and verify.

    Sequence b owns tokens query_ends[b - 1] to query_ends[b] of the T in this step. They are the
    last of its kv_lengths[b] tokens, and its cache lies in pages block_table_BP[b], in order.

    positions_T: int64, position of each token in its sequence.
    slots_T: int64, where the token's key and value are stored.
    query_ends_B, kv_lengths_B: int32; query_ends and kv_lengths repeat them on the host.
    block_table_BP: int32, rows padded with page 0.

    On a GPU the host's numbers choose grids and nothing else, and kv_lengths may be larger than the
    true ones on the device: see `decode_step`.
    """

    positions_T: Tensor
    slots_T: Tensor
    query_ends_B: Tensor
    kv_lengths_B: Tensor
    block_table_BP: Tensor
    query_ends: tuple[int, ...]
    kv_lengths: tuple[int, ...]

    @classmethod
    def build(
        cls,
        sequences: Sequence[tuple[int, int, Sequence[int]]],
        page_size: int,
        device: torch.device,
    ) -> "Step":
        """Lay out sequences given as (tokens already cached, tokens in this step, pages)."""
        starts, counts, tables = zip(*sequences, strict=True)
        ends, lengths = tuple(accumulate(counts)), tuple(map(add, starts, counts))
        small, sizes = _int32(ends, lengths, tables)
        large: Any  # a buffer
        if counts.count(1) == len(counts):
            large = _usual_slots(starts, tables, page_size)
        else:
            table_BP = np.frombuffer(small, np.int32)[-sizes[-1] :].reshape(len(counts), -1)
            large = _slots(starts, counts, table_BP, page_size)
        # Two copies and not five: after each of them the host waits for an accelerator.
        slots_T, positions_T = torch.frombuffer(large, dtype=torch.int64).to(device).view(2, -1)
        ends_B, _, lengths_B, _, pages = (
            torch.frombuffer(small, dtype=torch.int32).to(device).split_with_sizes(sizes)
        )
        return cls(
            positions_T=positions_T,
            slots_T=slots_T,
            query_ends_B=ends_B,
            kv_lengths_B=lengths_B,
            block_table_BP=pages.view(len(ends), -1),
            query_ends=ends,
            kv_lengths=lengths,
        )


def ids(numbers: Sequence[int], device: torch.device) -> Tensor:
    """Tokens or row numbers, at least one, as int64."""
    # By way of an array, which reads a list several times faster.
    return torch.frombuffer(array("q", numbers), dtype=torch.int64).to(device)


def _int32(
    ends: Sequence[int], lengths: Sequence[int], tables: Sequence[Sequence[int]]
) -> tuple["array[int]", list[int]]:
    """The numbers of a step that are int32, one after another, and the sizes of the five parts.

    Behind `ends` and behind `lengths` is a gap, so that what follows them is aligned. Of the block
    tables, page 0 follows the last of each.
    """
    batch, width = len(ends), max(map(len, tables))
    gap, zeros = array("i", bytes(4 * (-batch % _ALIGNMENT))), array("i", bytes(4 * width))
    flat = array("i", ends) + gap
    flat.extend(lengths)
    flat += gap
    for pages in tables:
        flat.extend(pages)
        if len(pages) < width:
            flat.extend(zeros[len(pages) :])
    return flat, [batch, len(gap), batch, len(gap), batch * width]


def _usual_slots(
    starts: Sequence[int], tables: Sequence[Sequence[int]], page_size: int
) -> "array[int]":
    """Slots and then positions where each sequence has one token: sooner done than by numpy."""
    pairs = zip(starts, tables, strict=True)
    slots = [pages[at // page_size] * page_size + at % page_size for at, pages in pairs]
    return array("q", [*slots, *starts])


def _slots(
    starts: Sequence[int], counts: Sequence[int], table_BP: np.ndarray[Any, Any], page_size: int
) -> np.ndarray[Any, Any]:
    """Slots and then positions, int64."""
    counts_B = np.array(counts)
    owner_T = np.repeat(np.arange(len(counts)), counts_B)
    before_B = counts_B.cumsum() - counts_B
    positions_T = np.arange(len(owner_T)) + (np.array(starts) - before_B)[owner_T]
    page_T, offset_T = np.divmod(positions_T, page_size)
    slots_T = table_BP[owner_T, page_T] * np.int64(page_size) + offset_T
    return np.concatenate((slots_T, positions_T))


def decode_step(
    sequences: Sequence[tuple[int, Sequence[int]]],
    batch: int,
    longest: int,
    scratch_page: int,
    page_size: int,
    device: torch.device,
) -> Step:
    """One token each of sequences given as (tokens already cached, pages), in shapes that fit all.

    For a CUDA or HIP graph, which repeats the launches it was captured with: tensors have the
    shapes, and the host's lengths the values, of `batch` sequences of `longest` tokens, whatever
    the sequences are. Copy the tensors of the next step into those that were captured. Rows beyond
    the sequences stand for a first token on `scratch_page`, which no sequence may own.
    """
    rows = [(cached, 1, pages) for cached, pages in sequences]
    if len(rows) > batch or any(cached >= longest for cached, _, _ in rows):
        raise UsageError(
            f"{len(rows)} sequences of up to {max(cached for cached, _, _ in rows) + 1} tokens do "
            f"not fit a decode step of {batch} sequences of {longest} tokens."
        )
    rows += [(0, 1, [scratch_page])] * (batch - len(rows))
    step = Step.build(rows, page_size, device)
    table = step.block_table_BP.new_zeros(batch, -(-longest // page_size))
    width = min(table.shape[1], step.block_table_BP.shape[1])
    table[:, :width] = step.block_table_BP[:, :width]
    return replace(step, block_table_BP=table, kv_lengths=(longest,) * batch)


class Ops(Protocol):
    """What a backend provides. Activations have the model's dtype unless a line says otherwise."""

    name: str
    device: torch.device
    page_size: int
    """Slots of a KV page that its attention reads best; any other works."""

    def pack(self, w: Weight) -> Weight:
        """Lay a weight out for this chip, once, at load. The only place for layout or dialect."""

    def linear(self, x_TR: Tensor, w: Weight, bias_N: Tensor | None = None) -> Tensor:
        """x @ w.T + bias: (T, N). Quantises the activations itself where the weight asks for it."""

    def rms_norm(
        self,
        x_TD: Tensor,
        w_D: Tensor,
        eps: float,
        residual_TD: Tensor | None = None,
        feeds: Weight | None = None,
    ) -> tuple[Tensor, Tensor]:
        """(the RMS norm of x + residual, x + residual), both (T, D).

        feeds: a packed weight that multiplies the result next. It changes no number: a backend may
        quantise for that product while it has the rows at hand.
        """

    def silu_mul(self, x_T2F: Tensor, feeds: Weight | None = None) -> Tensor:
        """silu(first half) * second half: (T, F). feeds: as in `rms_norm`."""

    def rope_store(
        self,
        q_THC: Tensor,
        k_TGC: Tensor,
        v_TGC: Tensor,
        cos_TC: Tensor,
        sin_TC: Tensor,
        cache: KVCache,
        step: Step,
        q_norm_C: Tensor | None = None,
        k_norm_C: Tensor | None = None,
        eps: float = 0.0,
    ) -> Tensor:
        """The queries, normalised (if given norms) and rotated: (T, H, C).

        Keys are treated alike and, with the values as they are, written into their tokens' slots.
        The first cos_TC.shape[-1] dimensions of a head are rotated. cos_TC and sin_TC hold each
        angle twice, in their first and their second half; dimension i of the first half is rotated
        against the same dimension of the second (NeoX order).
        """

    def attend(self, q_THC: Tensor, cache: KVCache, step: Step, scale: float) -> Tensor:
        """Causal grouped-query attention over the pages, this step's tokens included: (T, H, C)."""

    def route(
        self, x_TD: Tensor, gate_ED: Tensor, bias_E: Tensor, cfg: ModelConfig
    ) -> tuple[Tensor, Tensor]:
        """(weights_TK float32, experts_TK int32), in the order of choice.

        The gate's product, sigmoid and choice are float32 whatever the model's dtype; `bias_E`
        enters the choice and never the weights; of equal scores the lower expert wins.
        """

    def experts(
        self,
        x_TD: Tensor,
        gate_up_E2FD: Weight,
        down_EDF: Weight,
        weights_TK: Tensor,
        experts_TK: Tensor,
    ) -> Tensor:
        """The routed mixture: sum over K of weight * down(silu(gate x) * up x), (T, D).

        A choice outside 0 to E - 1, E being the experts of these weights, belongs to another rank
        and adds nothing; a token without any other is 0.
        """


FORMATS = ("bf16", "fp8", "w8a8", "int8")
"""The formats of weights, explained in `formats.py`."""


def formats(backend: Ops) -> frozenset[str]:
    """The formats that a backend's `pack` takes: its attribute `formats`, all where it has none."""
    return frozenset(getattr(backend, "formats", FORMATS))


def fp8_pages(backend: Ops) -> torch.dtype | None:
    """The FP8 of its KV pages: its attribute `fp8_pages`, float8_e4m3fn where it has none.

    None is a backend whose attention takes pages in the model's type alone.
    """
    found: torch.dtype | None = getattr(backend, "fp8_pages", torch.float8_e4m3fn)
    return found


def readable(backend: Ops, x: Tensor) -> Tensor:
    """A tensor that its `pack` has made, as torch reads it: by its function `readable`, if any.

    Where torch reads none of a layout's bytes, that is a copy with the same numbers.
    """
    found: Tensor = getattr(backend, "readable", lambda x: x)(x)
    return found


def collectives(backend: Ops) -> str:
    """The library of torch.distributed for its tensors: its attribute `collectives`, or gloo."""
    on_host = backend.device.type == "cpu"
    return "gloo" if on_host else str(getattr(backend, "collectives", "gloo"))


def batch_invariant(backend: Ops) -> Ops | None:
    """It, or its function `rows_alike`, whose every row has the same bits in any company.

    What promises that has an attribute `batch_invariant` that is true. None: it cannot.
    """
    if getattr(backend, "batch_invariant", False):
        return backend
    found: Ops | None = getattr(backend, "rows_alike", lambda: None)()
    return found


def promising(backend: Ops) -> Ops:
    """What `batch_invariant` finds. Raises UsageError if that is nothing."""
    found = batch_invariant(backend)
    if found is None:
        raise UsageError(
            f"backend {backend.name!r} does not promise a token the same bits in any company: use "
            "one that does, such as cpu, or do without deterministic inference."
        )
    return found


def names() -> list[str]:
    """The backends this installation has."""
    package = importlib.import_module("glm_portable.backends")
    found = (m.name for m in pkgutil.iter_modules(package.__path__))
    return sorted(name for name in found if not name.startswith("_"))


def load(name: str) -> Ops:
    """Import a backend by name; "auto" takes the best one this machine can run."""
    name = detect() if name == "auto" else name
    if name not in names():
        raise UsageError(f"backend {name!r} is not one of auto, {', '.join(names())}.")
    module = module_of(name)
    return cast(Ops, module.connect() if hasattr(module, "connect") else module)


def module_of(name: str) -> ModuleType:
    """The module of a backend, whether its device is here or not."""
    try:
        return importlib.import_module(f"glm_portable.backends.{name}")
    except ModuleNotFoundError as error:
        raise UsageError(
            f"backend {name!r} needs the Python package {error.name!r}: install it with pip."
        ) from None


def detect() -> str:
    """The backend for the accelerator that torch sees, or "cpu"."""
    if torch.cuda.is_available():
        found = "rocm" if torch.version.hip else "cuda"
        if found in names():
            return found
    npu = getattr(torch, "npu", None)  # torch imports torch_npu where it is installed
    if npu is not None and npu.is_available():
        return "ascend"
    return "cpu"
