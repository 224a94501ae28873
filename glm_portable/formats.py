"""The number formats of a checkpoint's weights: which to load, what each takes, and turning one
into another.

| name | linear weights | activations |
|---|---|---|
| bf16 | as the model's dtype | plain |
| fp8 | float8_e4m3fn, one scale an output channel or a block | FP8 per token, or plain |
| w8a8 | int8, one scale an output channel | INT8 per token, at run time |
| int8 | int8 otherwise: in blocks, or with plain activations | plain, or INT8 per token |

A conversion goes a few rows at a time through float32, so that it takes no memory of its own, and
every step of it is one correctly rounded operation on one number or the exact maximum of a row:
the bits are the same on every machine, and in every order.
"""

import math
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from glm_portable.config import W8A8 as W8A8_SCHEME
from glm_portable.config import ModelConfig
from glm_portable.errors import UsageError
from glm_portable.ops import FORMATS
from glm_portable.shards import Entry
from glm_portable.stored import KINDS, OFFSET, ROUTER_BIAS, SCALES, Entries, Linear, mtp_prefix

BF16, FP8, W8A8, INT8 = FORMATS
TARGETS = (BF16, W8A8)
"""What a checkpoint can be turned into, the preferred one first."""

ROOM = 0.9
"""Share of the free memory that the weights may take; the KV cache and activations need some."""

QUANTISED = re.compile(
    r"model\.layers\.(\d+)\.(self_attn\.[qkvo]_proj|mlp\.experts\.\d+\.(gate|up|down)_proj)"
)
"""What msmodelslim's recipe for GLM-4.7 quantises (lab_practice/glm4_moe/glm4_7_moe-w8a8-v1.yaml
of 26.1.0), in all layers but the MTP layer. Embedding, head, norms, router, shared experts and the
dense MLPs of the first layers stay as they are: a router or a shared expert in INT8 costs the model
its answers, and together they are small."""


def is_quantised(module: str, config: ModelConfig) -> bool:
    """Whether w8a8 stores this module ("model.layers.0.self_attn.q_proj") in INT8."""
    found = QUANTISED.fullmatch(module)
    return found is not None and int(found[1]) < config.num_hidden_layers


def stored_format(config: ModelConfig) -> str:
    """The format of the checkpoint that a configuration belongs to."""
    if config.quantization is None:
        return BF16
    if config.quantization.kind == "fp8":
        return FP8
    return W8A8 if config.quantization == W8A8_SCHEME else INT8


def quantize_rows(rows: Tensor) -> tuple[Tensor, Tensor]:
    """(int8 rows, scales (N, 1)) of a float32 matrix: symmetric, scale = max|row| / 127.

    Halves are rounded to even. The error of a number is at most half its row's scale.
    """
    low, high = torch.aminmax(rows, dim=1, keepdim=True)
    top = torch.maximum(-low, high)
    scale = (top / 127).clamp_(min=torch.finfo(torch.float32).tiny)
    return (rows / scale).round_().to(torch.int8), scale


def to_int8(source: Linear, out: Tensor) -> tuple[Tensor, float]:
    """Fill the int8 `out` (N, R), on the host, with a module on disk.

    Returns its float32 scales (N, 1) and the relative RMS error. Raises UsageError for weights
    that are not finite.
    """
    scale = torch.empty(source.entry.shape[0], 1)
    lost = power = 0.0
    for begin, rows in source.pieces():
        end = begin + len(rows)
        out[begin:end], scale[begin:end] = quantize_rows(rows)
        power += _square(rows)
        off = out[begin:end].to(torch.float32).mul_(scale[begin:end]).sub_(rows)
        lost += _square(off)
    if not scale.isfinite().all():
        raise UsageError(
            f"{source.entry.name} in {source.entry.shard.path} holds values that are not finite: "
            "the file is corrupt, download it again."
        )
    return scale, math.sqrt(lost / power) if power else 0.0


def _square(x: Tensor) -> float:
    return torch.dot(x.view(-1), x.view(-1)).item()


def to_plain(source: Linear, out: Tensor) -> None:
    """Fill `out` with a quantised weight, rounded to BF16 as a BF16 checkpoint would hold it."""
    for begin, rows in source.pieces():
        out[begin : begin + len(rows)].copy_(rows.to(torch.bfloat16))


def weight_bytes(entries: Entries, config: ModelConfig, itemsize: int, target: str | None) -> int:
    """Bytes of the weights once loaded in a format, or as stored if `target` is None.

    itemsize: of the model's dtype. The MTP layer's copies of embedding and head are shared.
    """
    copies = tuple(f"{mtp_prefix(config)}.{n}." for n in ("embed_tokens", "shared_head.head"))
    return sum(
        _loaded_bytes(entry, config, itemsize, target)
        for name, entry in entries.items()
        if not name.startswith(copies)
    )


def _loaded_bytes(entry: Entry, config: ModelConfig, itemsize: int, target: str | None) -> int:
    count = math.prod(entry.shape)
    if entry.name.endswith(OFFSET):
        return 0
    if entry.name.endswith(SCALES):
        return 4 * count if target is None else 0
    if target == W8A8 and is_quantised(entry.name.removesuffix(".weight"), config):
        return count + 4 * entry.shape[0]
    if target is None and entry.dtype in KINDS:
        return count
    wide = entry.name.endswith((ROUTER_BIAS, "mlp.gate.weight"))
    return count * (max(4, itemsize) if wide else itemsize)


@dataclass(frozen=True)
class Memory:
    """sizes: bytes of the weights by format. free: bytes that the device has for them."""

    sizes: Mapping[str, int]
    free: int


@dataclass(frozen=True)
class Choice:
    """quantization: what to convert to, None for as stored. note: why, where nobody asked."""

    quantization: str | None
    note: str | None = None


def choose(
    asked: str | None,
    stored: str,
    runs: Collection[str],
    backend: str,
    measure: Callable[[], Memory],
) -> Choice:
    """What to load: what was asked for, else as stored, else the best that the backend can hold.

    Raises UsageError if the backend does not run what was asked for, or nothing fits.
    """
    if asked is not None:
        if asked not in TARGETS:
            raise UsageError(f"quantization {asked!r} is not one of {', '.join(TARGETS)}.")
        if asked not in runs:
            offered = [f"--quantization {t}" for t in TARGETS if t in runs]
            raise UsageError(
                f"backend {backend} does not run {asked} weights; it takes {' or '.join(offered)}."
            )
        return Choice(None if asked == stored else asked)
    if stored in runs:
        return Choice(None)
    return _largest_that_fits(stored, [t for t in TARGETS if t in runs], backend, measure())


def _largest_that_fits(stored: str, targets: list[str], backend: str, memory: Memory) -> Choice:
    needs = " and ".join(f"{t} takes {_gib(memory.sizes[t])}" for t in targets)
    what = (
        f"the weights are {stored}, which backend {backend} does not run. Converted, {needs}; "
        f"{_gib(memory.free)} are free, of which weights may take {ROOM:.0%}"
    )
    for target in targets:
        if memory.sizes[target] <= ROOM * memory.free:
            return Choice(target, f"{what[0].upper()}{what[1:]}: loading {target}.")
    raise UsageError(f"{what}: take more devices, or a smaller model.")


def _gib(count: int) -> str:
    return f"{count / 2**30:,.1f} GiB"
