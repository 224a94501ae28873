"""A checkpoint folder from which the model pulls its weights by the names on disk.

Whether a linear module is quantised is told by its scale, as published files quantise some modules
and not others: `X.weight_scale` (compressed-tensors: one number an output channel, or a block) or
`X.weight_scale_inv` (DeepSeek-style blocks; despite its name a factor, not a divisor). Both mean
weight = data * scale. What is missing, misshapen or left over is an error that names it.
"""

import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor

from glm_portable.config import ModelConfig
from glm_portable.errors import UsageError
from glm_portable.ops import Weight
from glm_portable.shards import Entry, open_folder

SCALES = (".weight_scale", ".weight_scale_inv")
KINDS = {torch.float8_e4m3fn: "fp8", torch.int8: "int8"}
CPU = torch.device("cpu")
READERS = min(8, os.cpu_count() or 1)


class Checkpoint:
    """Weights of one folder, on `device`; plain ones in `dtype`, quantised ones as stored.

    Opening reads headers only. `on_bytes` is called with the size of what was read or skipped,
    and all its calls add up to `total_bytes`.
    """

    def __init__(
        self,
        folder: Path,
        config: ModelConfig,
        *,
        dtype: torch.dtype,
        device: torch.device = CPU,
        on_bytes: Callable[[int], None] | None = None,
    ) -> None:
        self.folder, self.config, self.dtype, self.device = folder, config, dtype, device
        self._entries = open_folder(folder)
        self._unused = dict.fromkeys(self._entries)
        self._on_bytes = on_bytes
        self.total_bytes = sum(entry.nbytes for entry in self._entries.values())
        _check_quantization(self._entries, config, folder)

    def has(self, name: str) -> bool:
        """Whether the checkpoint holds a tensor of this full name."""
        return name in self._entries

    def tensor(self, name: str, shape: tuple[int, ...], dtype: torch.dtype | None = None) -> Tensor:
        """A plain tensor (norm, bias, embedding, router) of this shape, in `dtype` or ours."""
        entry = self._find(name, shape)
        if entry.dtype in KINDS:
            raise UsageError(
                f"{name} in {entry.shard.path} is {KINDS[entry.dtype]}, but it is no linear "
                "weight and must be stored plainly; use another conversion of the model."
            )
        out = self._empty(shape, dtype or self.dtype)
        entry.read_into(out)
        self._used(name)
        if out.dim() == 1:
            _check_finite(out, entry)
        return out

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
        """The experts `{prefix}.{e}.{projection}` as one (E, len(projections) * out, in)."""
        rows = [[f"{prefix}.{e}.{p}" for p in projections] for e in range(count)]
        return self._stack(rows, [out_features] * len(projections), in_features)

    def skip(self, name: str) -> None:
        """Leave a tensor on disk unused on purpose."""
        self._used(name)

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
        if entry.shape != shape:
            raise UsageError(
                f"{name} in {entry.shard.path} has shape {list(entry.shape)}, but config.json "
                f"means {list(shape)}: take weights and config.json of the same model."
            )
        return entry

    def _used(self, name: str) -> None:
        if name in self._unused:
            del self._unused[name]
            if self._on_bytes is not None:
                self._on_bytes(self._entries[name].nbytes)

    def _stack(
        self, rows: Sequence[Sequence[str]], outs: Sequence[int], in_features: int
    ) -> Weight:
        """Weight (len(rows), sum(outs), in_features): each row's modules, one below the other."""
        entries = [
            [self._find(f"{m}.weight", (n, in_features)) for m, n in zip(row, outs, strict=True)]
            for row in rows
        ]
        stored = _common_dtype([entry for row in entries for entry in row])
        dtype = stored if stored in KINDS else self.dtype
        shape = (len(rows), sum(outs), in_features)
        data = self._empty(shape, dtype)
        self._fill(data, entries, list(outs))
        if stored not in KINDS:
            return Weight(data, self.dtype)
        assert self.config.quantization is not None
        scale, block = self._scales(rows, outs, in_features)
        return Weight(data, self.dtype, scale, block, self.config.quantization.dynamic_activations)

    def _fill(self, data: Tensor, rows: Sequence[Sequence[Entry]], outs: list[int]) -> None:
        """Read each row's parts into their places; reading and faulting memory in share cores."""
        parts = [part for matrix in data for part in matrix.split(outs)]
        entries = [entry for row in rows for entry in row]
        with ThreadPoolExecutor(READERS) as pool:
            for entry, _ in zip(entries, pool.map(Entry.read_into, entries, parts), strict=True):
                self._used(entry.name)

    def _scales(
        self, rows: Sequence[Sequence[str]], outs: Sequence[int], in_features: int
    ) -> tuple[Tensor, tuple[int, int] | None]:
        """Scales of a stack, float32, and the block they are for."""
        assert self.config.quantization is not None
        block = self.config.quantization.block
        parts = [
            [self._scale(m, n, in_features) for m, n in zip(row, outs, strict=True)] for row in rows
        ]
        if block is not None and any(n % block[0] for n in outs[:-1]):
            # The parts' blocks do not line up in the stack: give every row its own scales.
            parts = [
                [s.repeat_interleave(block[0], 0)[:n] for s, n in zip(row, outs, strict=True)]
                for row in parts
            ]
            block = (1, block[1])
        return torch.stack([torch.cat(row) for row in parts]).to(self.device), block

    def _scale(self, module: str, out_features: int, in_features: int) -> Tensor:
        """The scale of one module, (N, 1) or blocks, float32 on the host."""
        assert self.config.quantization is not None
        name = next(module + s for s in SCALES if self.has(module + s))
        block = self.config.quantization.block or (1, in_features)
        shape = (-(-out_features // block[0]), -(-in_features // block[1]))
        if self._entries[name].shape == (out_features,) and shape == (out_features, 1):
            shape_on_disk: tuple[int, ...] = (out_features,)
        else:
            shape_on_disk = shape
        entry = self._find(name, shape_on_disk)
        scale = entry.read().to(torch.float32).view(shape)
        self._used(name)
        _check_finite(scale, entry)
        return scale


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
            "must be stored alike, so use another conversion of the model."
        )
    return next(iter(by_dtype))


def _check_finite(value: Tensor, entry: Entry) -> None:
    if not value.isfinite().all():
        raise UsageError(
            f"{entry.name} in {entry.shard.path} holds values that are not finite: "
            "the file is corrupt, download it again."
        )


def _check_quantization(entries: dict[str, Entry], config: ModelConfig, folder: Path) -> None:
    """Every 8-bit tensor has its scale, every scale its 8-bit weight, and config.json agrees."""
    for name, entry in entries.items():
        if entry.dtype in KINDS:
            _check_quantized(entries, entry, config)
        elif name.endswith(SCALES):
            weight = entries.get(name.rpartition("_scale")[0])
            if weight is None or weight.dtype not in KINDS:
                found = "is missing" if weight is None else f"is {weight.dtype}"
                raise UsageError(
                    f"{name} in {entry.shard.path} is a scale whose 8-bit weight {found}: "
                    "the conversion is incomplete, use another one."
                )


def _check_quantized(entries: dict[str, Entry], entry: Entry, config: ModelConfig) -> None:
    kind, where = KINDS[entry.dtype], f"{entry.name} in {entry.shard.path}"
    scales = [s for s in SCALES if entry.name.removesuffix(".weight") + s in entries]
    if len(scales) != 1:
        found = "has no scale" if not scales else "has two scales"
        raise UsageError(
            f"{where} is {kind} and {found} (.weight_scale or .weight_scale_inv): "
            "the conversion is incomplete, use another one."
        )
    if config.quantization is None or config.quantization.kind != kind:
        says = (
            "no quantization_config"
            if config.quantization is None
            else (f"a quantization_config for {config.quantization.kind}")
        )
        raise UsageError(
            f"{where} is {kind}, but config.json has {says}: "
            "take the config.json published with these weights."
        )
