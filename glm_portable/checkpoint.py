"""A checkpoint folder from which the model pulls its weights by the names on disk.

Linear weights come as they are stored, or converted to another format on the way in
(`formats.py`). What is missing, misshapen or left over is an error that names it.
"""

import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from glm_portable import formats
from glm_portable.config import ModelConfig
from glm_portable.errors import UsageError
from glm_portable.ops import Weight
from glm_portable.parallel import SINGLE, Parallel
from glm_portable.shards import Entry
from glm_portable.stored import (
    KINDS,
    KV_SCALES,
    OFFSET,
    SCALES,
    Entries,
    Linear,
    blocks,
    check_finite,
    check_shape,
    linear,
    open_stored,
)  # fmt: skip

T = TypeVar("T")

CPU = torch.device("cpu")
READERS = min(8, os.cpu_count() or 1)


class Checkpoint:
    """Weights of one folder, on `device`; plain ones in `dtype`, quantised ones as stored.

    Opening reads headers only. `on_bytes` is called with the size of what was read or skipped,
    and all its calls add up to `total_bytes`. router_bias_from: a folder with the router biases
    that this one lost.

    parallel: which rank this process is; all weights are its parts of them, while the shapes asked
    for are those of the whole model.

    quantization: a format to convert linear weights to as they are read; None is as stored. May be
    set until the first weight is read. conversion_errors: of the INT8 weights made so far, the
    largest relative RMS error of a module, by "attention" and "experts".
    """

    def __init__(
        self,
        folder: Path,
        config: ModelConfig,
        *,
        dtype: torch.dtype,
        device: torch.device = CPU,
        quantization: str | None = None,
        router_bias_from: Path | None = None,
        parallel: Parallel = SINGLE,
        on_bytes: Callable[[int], None] | None = None,
    ) -> None:
        self.folder, self.config, self.dtype, self.device = folder, config, dtype, device
        parallel.check(config)
        self.parallel, self.quantization = parallel, quantization
        self.conversion_errors: dict[str, float] = {}
        self._entries, left_out = open_stored(folder, config, router_bias_from)
        self._unused = dict.fromkeys(self._entries)
        self._on_bytes = on_bytes
        self.total_bytes = sum(entry.nbytes for entry in (*self._entries.values(), *left_out))
        for entry in left_out:
            self._count(entry)

    def names(self) -> list[str]:
        """Every tensor, in the order of the files."""
        return list(self._entries)

    def has(self, name: str) -> bool:
        """Whether the checkpoint holds a tensor of this full name."""
        return name in self._entries

    def tensor(self, name: str, shape: tuple[int, ...], dtype: torch.dtype | None = None) -> Tensor:
        """A plain tensor (norm, bias, embedding, router) of this shape, in `dtype` or ours."""
        entry = self._part(self._find(name, shape))
        if entry.dtype in KINDS:
            raise UsageError(
                f"{name} in {entry.shard.path} is {KINDS[entry.dtype]}, but it is no linear "
                "weight and must be stored plainly; use another conversion of the model."
            )
        out = self._empty(entry.shape, dtype or self.dtype)
        entry.read_into(out)
        self._used(name)
        if out.dim() == 1:
            check_finite(out, entry)
        return out

    def rows(self, name: str, begin: int, end: int) -> Tensor:
        """Rows of a plain matrix in our dtype, where the whole of it need not be in memory."""
        entry = self._entries.get(name)
        if entry is None or entry.dtype in KINDS or len(entry.shape) != 2:
            raise UsageError(f"{name} in {self.folder} is no plain matrix to read by rows.")
        self._used(name)
        return entry.rows(begin, end).to(self.device, self.dtype)

    def weight(
        self, modules: Sequence[str], out_features: Sequence[int], in_features: int
    ) -> Weight:
        """One linear weight (sum(out_features), in_features) of modules stacked in this order.

        `modules` are prefixes ("model.layers.0.self_attn.q_proj"); `out_features` has one each.
        """
        stack = self._stack([modules], out_features, in_features)
        scale = None if stack.scale is None else stack.scale[0]
        return Weight(stack.data[0], stack.dtype, scale, stack.block, stack.dynamic_activations)

    def experts(
        self,
        prefix: str,
        projections: Sequence[str],
        count: int,
        out_features: int,
        in_features: int,
    ) -> Weight:
        """The experts `{prefix}.{e}.{projection}` as one (E, len(projections) * out, in).

        Those of other ranks are left out.
        """
        every = [[f"{prefix}.{e}.{p}" for p in projections] for e in range(count)]
        rows = []
        for row in every:
            if self.parallel.holds(row[0], self.config):
                rows.append(row)
            else:
                for module in row:
                    self.skip_linear(module)
        return self._stack(rows, [out_features] * len(projections), in_features)

    def kv_scales(self, attention: str) -> tuple[float, float] | None:
        """What a layer's keys and values are divided by in FP8 pages, if it was calibrated."""
        found = {}
        for which in "kv":
            names = [f"{attention}.{name.format(which)}" for name in KV_SCALES]
            for name in filter(self.has, names):
                found[which] = _kv_scale(self._entries[name])
                self._used(name)
        if len(found) == 1:
            raise UsageError(
                f"{self.folder} has a {next(iter(found))}_scale for {attention}, but only one of "
                "k_scale and v_scale: take a complete checkpoint."
            )
        return (found["k"], found["v"]) if found else None

    def is_quantised(self, module: str) -> bool:
        """Whether the checkpoint holds this linear module in 8 bits."""
        return any(self.has(module + scale) for scale in SCALES)

    def skip(self, name: str) -> None:
        """Leave a tensor on disk unused on purpose."""
        self._used(name)

    def skip_linear(self, module: str) -> None:
        """Leave a linear weight on disk unused on purpose, with what describes it."""
        for suffix in (".weight", *SCALES, OFFSET):
            if self.has(module + suffix):
                self._used(module + suffix)

    def loaded_bytes(self, target: str | None) -> int:
        """What this rank's weights take in a format of `formats.py`, or as stored if None."""
        itemsize = self.dtype.itemsize
        return formats.weight_bytes(self._held(), self.config, itemsize, target)

    def finish(self) -> None:
        """Close the files. Raises UsageError if they hold tensors that nobody asked for."""
        for shard in {entry.shard for entry in self._entries.values()}:
            shard.file.close()
        count = len(self._unused)
        if count:
            first = ", ".join(list(self._unused)[:3])
            raise UsageError(
                f"{self.folder} holds {count} tensor{'s' if count > 1 else ''} that its "
                f"config.json does not account for ({first}{', ...' if count > 3 else ''}): "
                "take weights and config.json of the same model."
            )

    def _empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Never an inference tensor: the threads that fill it are outside of inference mode."""
        with torch.inference_mode(False):
            return torch.empty(shape, dtype=dtype, device=self.device)

    def _find(self, name: str, shape: tuple[int, ...]) -> Entry:
        entry = self._entries.get(name)
        if entry is None:
            raise UsageError(f"{name} is missing from {self.folder}{_advice(name)}")
        check_shape(entry, shape)
        return entry

    def _part(self, entry: Entry) -> Entry:
        """What this rank holds of a tensor."""
        split = self.parallel.split(entry.name.rpartition(".")[0], self.config)
        rows = split.rows.of(entry.shape[0])
        return entry.part(rows, *(split.columns.of(n) for n in entry.shape[1:]))

    def _held(self) -> Entries:
        """What this rank holds of every tensor that it reads."""
        held = {}
        for name, entry in self._entries.items():
            module = name.rpartition(".")[0]
            if name.endswith(("k_scale", "v_scale", "output_scale")):  # of the KV cache
                held[name] = entry
            elif self.parallel.holds(module, self.config):
                scale = name.endswith(SCALES)
                held[name] = self._scale_part(module, entry) if scale else self._part(entry)
        return held

    def _scale_part(self, module: str, scale: Entry) -> Entry:
        """An entry of the shape that the scale of this rank's part has."""
        assert self.config.quantization is not None
        block, split = self.config.quantization.block, self.parallel.split(module, self.config)
        whole = self._entries[f"{module}.weight"].shape
        parts = (split.rows.of(whole[0]), split.columns.of(whole[1]))
        if block is None:
            return replace(scale, shape=(len(parts[0]), 1))
        shape = [len(blocks(*x)[1]) for x in zip(block, parts, whole, strict=True)]
        return replace(scale, shape=tuple(shape))

    def _linear(self, module: str) -> tuple[Linear, list[Entry]]:
        """What this rank holds of a module, and the tensors on disk that describe it."""
        source, beside = linear(self._entries, module, self.config)
        split = self.parallel.split(module, self.config)
        n, r = source.entry.shape
        return source.part(split.rows.of(n), split.columns.of(r)), beside

    def _used(self, name: str) -> None:
        if name in self._unused:
            del self._unused[name]
            self._count(self._entries[name])

    def _count(self, entry: Entry) -> None:
        if self._on_bytes is not None:
            self._on_bytes(entry.nbytes)

    def _stack(
        self, rows: Sequence[Sequence[str]], outs: Sequence[int], in_features: int
    ) -> Weight:
        """Weight (len(rows), sum(outs), in_features): each row's modules, one below the other."""
        entries = [
            [
                self._part(self._find(f"{m}.weight", (n, in_features)))
                for m, n in zip(row, outs, strict=True)
            ]
            for row in rows
        ]
        outs = [entry.shape[0] for entry in entries[0]]  # of this rank, from here on
        shape = (len(rows), sum(outs), entries[0][0].shape[1])
        modules = [module for row in rows for module in row]
        if self.quantization == formats.W8A8 and formats.is_quantised(modules[0], self.config):
            return self._to_int8(modules, outs, shape)
        if self.quantization is not None and any(map(self.is_quantised, modules)):
            return self._to_plain(modules, outs, shape)
        stored = _common_dtype([entry for row in entries for entry in row])
        dtype = stored if stored in KINDS else self.dtype
        data = self._empty(shape, dtype)
        self._fill(data, entries, list(outs))
        if stored not in KINDS:
            return Weight(data, self.dtype)
        assert self.config.quantization is not None
        scale, block = self._scales(rows, outs)
        return Weight(data, self.dtype, scale, block, self.config.quantization.dynamic_activations)

    def _fill(self, data: Tensor, rows: Sequence[Sequence[Entry]], outs: list[int]) -> None:
        """Read each row's parts into their places; reading and faulting memory in share cores."""
        parts = [part for matrix in data for part in matrix.split(outs)]
        entries = [entry for row in rows for entry in row]
        with self._readers() as pool:
            for entry, _ in zip(entries, pool.map(Entry.read_into, entries, parts), strict=True):
                self._used(entry.name)

    def _readers(self) -> ThreadPoolExecutor:
        """Threads that have our device as their current one: on others it would be number 0."""
        index = self.device.index
        if self.device == CPU or index is None:
            return ThreadPoolExecutor(READERS)
        set_device = torch.accelerator.set_device_index
        return ThreadPoolExecutor(READERS, initializer=set_device, initargs=(index,))

    def _to_int8(
        self, modules: Sequence[str], outs: Sequence[int], shape: tuple[int, int, int]
    ) -> Weight:
        """Modules of a stack of this shape as W8A8; one at a time and thread, in small pieces."""
        data = self._empty(shape, torch.int8)
        scales = []
        for module, (scale, error) in self._each(modules, self._one_to_int8, data, outs):
            scales.append(scale)
            group = "experts" if ".experts." in module else "attention"
            self.conversion_errors[group] = max(error, self.conversion_errors.get(group, 0.0))
        scale = torch.cat(scales).view(*shape[:2], 1).to(self.device)
        return Weight(data, self.dtype, scale, None, True)

    def _to_plain(
        self, modules: Sequence[str], outs: Sequence[int], shape: tuple[int, int, int]
    ) -> Weight:
        """As `_to_int8`, without quantisation; modules may be stored in different ways."""
        data = self._empty(shape, self.dtype)
        for _ in self._each(modules, self._one_to_plain, data, outs):
            pass
        return Weight(data, self.dtype)

    def _each(
        self,
        modules: Sequence[str],
        convert: Callable[[str, Tensor], T],
        data: Tensor,
        outs: Sequence[int],
    ) -> Iterator[tuple[str, T]]:
        """Convert each module into its place in the stack."""
        places = [part for matrix in data for part in matrix.split(list(outs))]
        with self._readers() as pool:
            for module, done in zip(modules, pool.map(convert, modules, places), strict=True):
                self.skip_linear(module)
                yield module, done

    def _one_to_int8(self, module: str, out: Tensor) -> tuple[Tensor, float]:
        on_host = out if out.device == CPU else torch.empty(out.shape, dtype=out.dtype)
        found = formats.to_int8(self._linear(module)[0], on_host)
        if on_host is not out:
            out.copy_(on_host)
        return found

    def _one_to_plain(self, module: str, out: Tensor) -> None:
        source, _ = self._linear(module)
        if source.scale is None:
            source.entry.read_into(out)
        else:
            formats.to_plain(source, out)

    def _scales(
        self, rows: Sequence[Sequence[str]], outs: Sequence[int]
    ) -> tuple[Tensor, tuple[int, int] | None]:
        """Scales of a stack, float32, and the block they are for."""
        parts = [[self._scale(module) for module in row] for row in rows]
        block = parts[0][0].block
        scales = [[part.scale for part in row if part.scale is not None] for row in parts]
        alike = {part.block for row in parts for part in row} == {block}
        if block is not None and not (alike and all(n % block[0] == 0 for n in outs[:-1])):
            # The parts' blocks do not line up in the stack: give every row its own scales.
            scales = [[_per_row(part) for part in row] for row in parts]
            block = (1, block[1])
        return torch.stack([torch.cat(row) for row in scales]).to(self.device), block

    def _scale(self, module: str) -> Linear:
        """A module with its scale; what describes it is then used."""
        source, beside = self._linear(module)
        for entry in beside:
            self._used(entry.name)
        assert source.scale is not None
        return source


def _kv_scale(entry: Entry) -> float:
    """One positive number, with any number of dimensions. Raises UsageError."""
    value = entry.read().float().flatten()
    if len(value) != 1 or not 0 < value.item() < math.inf:
        raise UsageError(
            f"{entry.name} in {entry.shard.path} is {str(value.tolist())[:80]}; a scale of the KV "
            "cache must be one positive number, so convert the checkpoint with the strategy tensor."
        )
    return value.item()


def _per_row(part: Linear) -> Tensor:
    """A block scale with one row for each of the weight's."""
    assert part.scale is not None and part.block is not None
    return part.scale.repeat_interleave(part.block[0], 0)[: part.entry.shape[0]]


def _advice(name: str) -> str:
    if name.endswith("e_score_correction_bias"):
        return (
            ": without this bias, or with zeros in its place, the router picks other experts than "
            "the model was trained with; convert the model again with a tool that keeps it."
        )
    return ": take a complete checkpoint and the config.json published with it."


def _common_dtype(entries: Iterable[Entry]) -> torch.dtype:
    """The storage type of modules that become one weight; quantised ones must agree."""
    by_dtype: dict[torch.dtype, Entry] = {}
    for entry in entries:
        by_dtype.setdefault(entry.dtype, entry)
    if len(by_dtype) > 1 and any(dtype in KINDS for dtype in by_dtype):
        a, b = list(by_dtype.values())[:2]
        raise UsageError(
            f"{a.name} is {a.dtype} and {b.name} is {b.dtype}; modules that are computed as one "
            "must be stored alike, so use another conversion of the model, or --quantization bf16."
        )
    return next(iter(by_dtype))
