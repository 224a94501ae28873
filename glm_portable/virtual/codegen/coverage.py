"""Every matrix product of GLM-4.5 and Air on every number of ranks: what is sound without
compiling, and the distinct kernels that all of them come down to.

Experts and the dense layers that no vendor library multiplies (FP8 in blocks, FP8 widened to meet
bf16, and heights that are no multiple of 16) go through one kernel, and in deterministic inference
all dense layers do. Its compile-time parameters and what Triton is told of its arguments decide
which of them share machine code.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import torch
from triton.compiler import make_backend
from triton.runtime.jit import create_function_from_signature

from glm_portable.backends._gpu import ALIGNMENT
from glm_portable.kernels.target import Target
from glm_portable.kernels.tiles import FIXED_ROWS, Tile, choose, fixed
from glm_portable.virtual.chips import Chip, chip
from glm_portable.virtual.codegen.peers import Quantisation
from glm_portable.virtual.codegen.products import CHOSEN, Product, Shape, record
from glm_portable.virtual.codegen.recording import Recorded

TOKENS = (1, 16, 17, 64, 256, 1024, 4096)
QUANTISATIONS: tuple[Quantisation, ...] = ("bf16", "channel", "block", "w8a16")
HEAD = 128
SCALE_BLOCK = 128


@dataclass(frozen=True)
class Model:
    """The sizes of a checkpoint's config.json that its matrices have."""

    name: str
    experts: int
    hidden: int
    width: int
    dense: int
    heads: int = 96
    groups: int = 8


MODELS = (
    Model("GLM-4.5", 160, 5120, 1536, 12288),  # and 4.6 and 4.7
    Model("Air", 128, 4096, 1408, 10944),
)
RANKS = (("TP", 1), ("TP", 2), ("TP", 4), ("TP", 8), ("EP", 8), ("EP", 16))
"""Tensor parallelism slices every matrix; expert parallelism deals out whole experts."""


def shapes() -> Iterator[Shape]:
    """The matrices of one rank; those of a linear layer have one expert."""
    for model, (way, ranks) in product(MODELS, RANKS):
        name = f"{model.name} {way}{ranks}"
        slices, share = (ranks, 1) if way == "TP" else (1, ranks)
        width, experts = model.width // slices, model.experts // share
        yield Shape(f"{name} gate_up", experts, 2 * width, model.hidden)
        yield Shape(f"{name} down", experts, model.hidden, width, routed=True)
        if way == "TP":
            yield from _linears(model, name, ranks)


def _linears(model: Model, name: str, ranks: int) -> Iterator[Shape]:
    heads, groups = model.heads // ranks, model.groups // ranks
    for layer, width in (("dense", model.dense // ranks), ("shared", model.width // ranks)):
        yield Shape(f"{name} {layer} gate_up", 1, 2 * width, model.hidden)
        yield Shape(f"{name} {layer} down", 1, model.hidden, width)
    yield Shape(f"{name} qkv", 1, (heads + 2 * groups) * HEAD, model.hidden, bias=True)
    yield Shape(f"{name} o", 1, model.hidden, heads * HEAD)


def products(target: Target) -> Iterator[Product]:
    """Each launch of the kernel, at the tile that would be chosen for it."""
    for sliced, quantisation, tokens in product(shapes(), QUANTISATIONS, TOKENS):
        shape = _packed(sliced)
        if _is_launched(shape, quantisation):
            chosen = CHOSEN if shape.experts > 1 else 1
            codes = torch.bfloat16 if quantisation == "bf16" else target.fp8
            w8a16 = quantisation == "w8a16"
            tile = choose(target, shape.experts, shape.n, shape.k, codes, tokens, chosen, w8a16)
            yield Product(
                f"{shape.model}, {tokens} tokens",
                quantisation,
                tile,
                record(target, shape, quantisation, tokens, tile),
            )


def alike(target: Target) -> Iterator[Product]:
    """Each launch of the kernel in deterministic inference, where it multiplies all weights."""
    for sliced, quantisation in product(shapes(), QUANTISATIONS):
        shape = _packed(sliced)
        codes = torch.bfloat16 if quantisation == "bf16" else target.fp8
        tile = fixed(target, shape.experts, shape.k, codes, quantisation == "w8a16")
        yield Product(
            f"{shape.model}, any tokens",
            quantisation,
            tile,
            record(target, shape, quantisation, FIXED_ROWS, tile),
        )


def _packed(shape: Shape) -> Shape:
    """As the backend lays it out: a linear layer has columns of zeros up to a multiple."""
    if shape.experts > 1:
        return shape
    return replace(shape, k=-(-shape.k // ALIGNMENT) * ALIGNMENT)


def _is_launched(shape: Shape, quantisation: Quantisation) -> bool:
    """Whether the kernel multiplies it, and not the vendor's library."""
    by_vendor = {
        "bf16": True, "channel": shape.n % ALIGNMENT == 0, "block": False, "w8a16": False
    }  # fmt: skip
    return shape.experts > 1 or not by_vendor[quantisation]


def distinct(target: Target, candidates: Iterable[Product]) -> Iterator[Product]:
    """The first product of each kernel that is compiled."""
    seen: set[object] = set()
    key = KernelKey(chip(target.arch))
    for candidate in candidates:
        if (found := key(candidate.launch)) not in seen:
            seen.add(found)
            yield candidate


class KernelKey:
    """What Triton's own cache tells launches apart by: types, constants, attributes, options."""

    def __init__(self, at: Chip) -> None:
        self.backend = make_backend(at.target)
        self.binds: dict[Any, Any] = {}

    def __call__(self, launch: Recorded) -> object:
        kernel = launch.kernel
        if kernel not in self.binds:
            self.binds[kernel] = create_function_from_signature(
                kernel.signature, kernel.params, self.backend
            )
        _, specialization, options = self.binds[kernel](**launch.arguments, **launch.options)
        return str(specialization), str(sorted(options.items()))


def unsound(target: Target, candidate: Product) -> list[str]:
    """What is wrong with the chosen tile, one sentence a finding, without compiling it."""
    tile, kind = candidate.tile, candidate.quantisation
    arguments, limit = candidate.launch.arguments, chip(target.arch).shared_limit
    k, found = arguments["K"], []
    least = 16 if kind == "bf16" else 32
    sizes = {"block_m": tile.block_m, "block_n": tile.block_n, "block_k": tile.block_k}
    for name, size in sizes.items():
        floor = least if name == "block_k" else 16
        if size < floor or size & (size - 1):
            found.append(f"{name} is {size}, not a power of two of at least {floor}")
    if kind == "block" and SCALE_BLOCK % tile.block_k:
        found.append(f"a step of {tile.block_k} crosses a block of {SCALE_BLOCK} scales")
    if arguments["EVEN_K"] != (k % tile.block_k == 0):
        found.append(f"EVEN_K is {arguments['EVEN_K']} for steps of {tile.block_k} along {k}")
    if (needed := shared_bytes(target, tile, kind)) > limit:
        found.append(f"its stages hold {needed:,} bytes, and the chip has {limit:,}")
    who = f"{candidate.configuration}, {kind}, on {target.arch}"
    return [f"{who}: {sentence}." for sentence in found]


def shared_bytes(target: Target, tile: Tile, quantisation: Quantisation) -> int:
    """LDS (shared memory) that the pipeline's stages of A and B take, without padding.

    gfx942 loads through registers, which hold one of the stages. The gate reads what the compiler
    really took; this needs no compiler.
    """
    a = 1 if quantisation in ("channel", "block") else 2
    b = 2 if quantisation == "bf16" else 1
    stages = tile.options["num_stages"] - (target.arch == "gfx942")
    return max(1, stages) * tile.block_k * (a * tile.block_m + b * tile.block_n)
