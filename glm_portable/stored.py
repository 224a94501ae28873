"""What a checkpoint folder holds: every tensor under the name the model uses, and that it adds up.

Whether a linear module is quantised is told by its scale, as published files quantise some modules
and not others: `X.weight_scale` (compressed-tensors, msmodelslim: one number an output channel, or
a block) or `X.weight_scale_inv` (DeepSeek-style blocks; despite its name a factor, not a divisor).
Both mean weight = data * scale. msmodelslim's `X.weight_offset` must be zero.
"""

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from glm_portable import modelslim
from glm_portable.config import ModelConfig
from glm_portable.errors import UsageError
from glm_portable.shards import STAGED_ELEMENTS, Entry, open_folder

SCALES = (".weight_scale", ".weight_scale_inv")
OFFSET = ".weight_offset"
KV_SCALES = ("{0}_scale", "{0}_proj.{0}_scale", "{0}_proj.output_scale")
"""Below a layer's attention, for k and v: of compressed-tensors, then of older tools."""
KINDS = {torch.float8_e4m3fn: "fp8", torch.int8: "int8"}
ROUTER_BIAS = "e_score_correction_bias"
# Modules whose biases GLM does not have; outlier suppression writes some (see `_without_biases`).
NO_BIAS = re.compile(r"(norm|o_proj|gate_proj|up_proj|down_proj)\.bias$")

Entries = dict[str, Entry]


def open_stored(
    folder: Path, config: ModelConfig, router_bias_from: Path | None = None
) -> tuple[Entries, list[Entry]]:
    """All tensors by the model's names, and those that say nothing and are left out.

    router_bias_from: the original checkpoint, for router biases that a conversion lost. Raises
    UsageError for files that are damaged or do not fit config.json or msmodelslim's description.
    """
    entries = _renamed(open_folder(folder), config, folder)
    tags = modelslim.load(folder)
    if router_bias_from is not None:
        lost = missing_router_biases(entries, config)
        entries |= _biases_of(router_bias_from, lost, config)
    elif tags is not None:
        check_router_biases(folder, entries, config)
    entries, left_out = _without_biases(entries)
    _check_quantization(entries, config)
    if tags is not None:
        _check_tags(entries, tags, folder)
    return entries, left_out


def mtp_prefix(config: ModelConfig) -> str:
    """Where the MTP layer's tensors are: its number is the one after the last layer's."""
    return f"model.layers.{config.num_hidden_layers}"


def has_mtp(entries: Entries, config: ModelConfig) -> bool:
    """Tools that re-save a checkpoint drop the MTP layer and keep its count in the config."""
    names = (f"{mtp_prefix(config)}.{n}.weight" for n in ("eh_proj", "enorm", "hnorm"))
    return config.num_nextn_predict_layers > 0 and any(name in entries for name in names)


@dataclass(frozen=True, slots=True)
class Linear:
    """One linear module on disk. scale: float32 on the host, (N, 1) or one number a block."""

    entry: Entry
    scale: Tensor | None = None
    block: tuple[int, int] | None = None

    def part(self, rows: range, columns: range) -> "Linear":
        """These rows and columns; blocks that the part cuts become smaller ones."""
        entry = self.entry.part(rows, columns)
        if self.scale is None:
            return Linear(entry)
        if self.block is None:
            return Linear(entry, self.scale[rows.start : rows.stop])
        tall, bands = blocks(self.block[0], rows, self.entry.shape[0])
        wide, strips = blocks(self.block[1], columns, self.entry.shape[1])
        return Linear(entry, self.scale[bands][:, strips].contiguous(), (tall, wide))

    def pieces(self) -> Iterator[tuple[int, Tensor]]:
        """(first row, rows in float32) from top to bottom, a few rows at a time."""
        count, width = self.entry.shape
        step = max(1, STAGED_ELEMENTS // max(1, width))
        for begin in range(0, count, step):
            end = min(begin + step, count)
            rows = self.entry.rows(begin, end).to(torch.float32)
            yield begin, rows if self.scale is None else rows.mul_(self._scale(begin, end))

    def _scale(self, begin: int, end: int) -> Tensor:
        assert self.scale is not None
        if self.block is None:
            return self.scale[begin:end]
        bands = self.scale[torch.arange(begin, end) // self.block[0]]
        return bands.repeat_interleave(self.block[1], 1)[:, : self.entry.shape[1]]


def blocks(size: int, part: range, whole: int) -> tuple[int, Tensor]:
    """The size of the blocks of a part, and for each of them the block on disk that it lies in.

    A part is a whole dimension or one of several equal parts of it.
    """
    here = size if len(part) == whole else math.gcd(size, len(part))
    return here, torch.arange(part.start, part.stop, here) // size


def linear(entries: Entries, module: str, config: ModelConfig) -> tuple[Linear, list[Entry]]:
    """A module and the tensors that describe it beside its weight, all of them read."""
    weight = entries[f"{module}.weight"]
    if weight.dtype not in KINDS:
        return Linear(weight), []
    assert config.quantization is not None
    block = config.quantization.block
    scale_entry = next(entries[module + s] for s in SCALES if module + s in entries)
    scale = read_scale(scale_entry, weight.shape, block)
    offset = entries.get(module + OFFSET)
    if offset is None:
        return Linear(weight, scale, block), [scale_entry]
    if offset.read().count_nonzero():
        raise UsageError(
            f"{offset.name} in {offset.shard.path} is not zero: its weights are quantised "
            "asymmetrically, which is not supported; use a symmetric conversion."
        )
    return Linear(weight, scale, block), [scale_entry, offset]


def read_scale(entry: Entry, weight: Sequence[int], block: tuple[int, int] | None) -> Tensor:
    """The scale of a weight of this shape, (N, 1) or blocks, float32 on the host."""
    rows, columns = block or (1, weight[1])
    shape = (-(-weight[0] // rows), -(-weight[1] // columns))
    flat = entry.shape == (weight[0],) and shape == (weight[0], 1)
    check_shape(entry, entry.shape if flat else shape)
    scale = entry.read().to(torch.float32).view(shape)
    check_finite(scale, entry)
    return scale


def check_shape(entry: Entry, shape: tuple[int, ...]) -> None:
    """Raises UsageError unless the tensor on disk has the shape that config.json implies."""
    if entry.shape != shape:
        raise UsageError(
            f"{entry.name} in {entry.shard.path} has shape {list(entry.shape)}, but config.json "
            f"means {list(shape)}: take weights and config.json of the same model."
        )


def check_finite(value: Tensor, entry: Entry) -> None:
    """Raises UsageError, naming the tensor that `value` was read from."""
    if not value.isfinite().all():
        raise UsageError(
            f"{entry.name} in {entry.shard.path} holds values that are not finite: "
            "the file is corrupt, download it again."
        )


def missing_router_biases(entries: Entries, config: ModelConfig) -> list[str]:
    """The router biases that a model of this architecture has and the checkpoint has not."""
    last = config.num_hidden_layers + has_mtp(entries, config)
    names = (
        f"model.layers.{i}.mlp.gate.{ROUTER_BIAS}"
        for i in range(config.first_k_dense_replace, last)
    )
    return [name for name in names if name not in entries]


def check_router_biases(folder: Path, entries: Entries, config: ModelConfig) -> None:
    """Raises UsageError, with the layers, if the checkpoint lost any."""
    lost = missing_router_biases(entries, config)
    if lost:
        layers = [int(name.split(".")[2]) for name in lost]
        raise UsageError(
            f"{folder} lost mlp.gate.{ROUTER_BIAS} of {_numbered(layers)}, without which the "
            "router picks other experts than the model was trained with (msmodelslim drops what "
            "transformers keeps as a buffer): add --router-bias-from ORIGINAL, the checkpoint "
            "that was converted."
        )


def _numbered(layers: list[int]) -> str:
    if len(layers) == 1:
        return f"layer {layers[0]}"
    if layers[-1] - layers[0] == len(layers) - 1:
        return f"layers {layers[0]} to {layers[-1]}"
    return f"layers {', '.join(map(str, layers))}"


def _renamed(entries: Entries, config: ModelConfig, folder: Path) -> Entries:
    """Some conversions call the MTP layer's `shared_head.head` just `head`."""
    short, name = (f"{mtp_prefix(config)}.{n}." for n in ("head", "shared_head.head"))
    result: Entries = {}
    for found, entry in entries.items():
        known = name + found.removeprefix(short) if found.startswith(short) else found
        if known != found and known in entries:
            raise UsageError(f"{folder} holds both {found} and {known}: remove one of them.")
        result[known] = replace(entry, name=known)
    return result


def _biases_of(original: Path, lost: list[str], config: ModelConfig) -> Entries:
    found = open_folder(original)
    for name in lost:
        if name not in found:
            raise UsageError(
                f"{original} has no {name} either: point --router-bias-from at the "
                "checkpoint that was converted."
            )
        check_shape(found[name], (config.n_routed_experts,))
    return {name: found[name] for name in lost}


def _without_biases(entries: Entries) -> tuple[Entries, list[Entry]]:
    """Leave out biases that GLM has no place for, if they are zero. Raises UsageError if not.

    Asymmetric outlier suppression (msmodelslim's m4) moves a shift into the norms' biases.
    """
    left_out = [entry for name, entry in entries.items() if NO_BIAS.search(name)]
    for entry in left_out:
        if entry.read().count_nonzero():
            raise UsageError(
                f"{entry.name} in {entry.shard.path} is not zero, and GLM's layers have no such "
                "bias: the conversion shifted activations (msmodelslim's m4), which is not "
                "supported; convert with a symmetric method."
            )
    names = {entry.name for entry in left_out}
    return {name: entry for name, entry in entries.items() if name not in names}, left_out


def _check_tags(entries: Entries, tags: dict[str, str], folder: Path) -> None:
    """int8 weights are those that the description tags as such."""
    for name, entry in entries.items():
        if not name.endswith(".weight"):
            continue
        tag, quantised = tags.get(name, modelslim.FLOAT), entry.dtype in KINDS
        if quantised != (tag == modelslim.DYNAMIC):
            raise UsageError(
                f"{name} in {entry.shard.path} is {entry.dtype}, but {modelslim.FILE} tags it "
                f"{tag}: take weights and description of the same conversion."
            )


def _check_quantization(entries: Entries, config: ModelConfig) -> None:
    """Every 8-bit tensor has its scale, every scale its 8-bit weight, and config.json agrees."""
    for name, entry in entries.items():
        if entry.dtype in KINDS:
            _check_quantized(entries, entry, config)
        elif name.endswith((*SCALES, OFFSET)):
            weight = entries.get(re.sub(r"_(scale|scale_inv|offset)$", "", name))
            if weight is None or weight.dtype not in KINDS:
                found = "is missing" if weight is None else f"is {weight.dtype}"
                what = "an offset" if name.endswith(OFFSET) else "a scale"
                raise UsageError(
                    f"{name} in {entry.shard.path} is {what} whose 8-bit weight {found}: "
                    "the conversion is incomplete, use another one."
                )


def _check_quantized(entries: Entries, entry: Entry, config: ModelConfig) -> None:
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
            f"no quantization_config (nor is {modelslim.FILE} beside it)"
            if config.quantization is None
            else (f"a quantization_config for {config.quantization.kind}")
        )
        raise UsageError(
            f"{where} is {kind}, but config.json has {says}: "
            "take the config.json published with these weights."
        )
