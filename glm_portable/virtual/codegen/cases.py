"""Every kernel of the repository in the configurations it is used in, and what is expected of it.

The launchers themselves are called, with tensors that have shapes and no storage and a `Launch`
that only records. So a case compiles what a server would, with its block sizes and options.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from glm_portable.config import ModelConfig
from glm_portable.kernels import (
    align,
    attention,
    grouped_gemm,
    norm,
    quantize,
    rope,
    route,
    silu,
)
from glm_portable.kernels.target import Target
from glm_portable.ops import KVCache, Step
from glm_portable.virtual.codegen import ceilings, coverage, products
from glm_portable.virtual.codegen.expectation import Expectation
from glm_portable.virtual.codegen.peers import ATTENTION, Peer, beside
from glm_portable.virtual.codegen.recording import Recorded, Recorder

POCKET = Path(__file__).parents[2] / "pocket"
META = torch.device("meta")
BF16, INT32, FLOAT32 = torch.bfloat16, torch.int32, torch.float32
# GLM-4.5 on 8 ranks: 96 query and 8 key/value heads of 128, hidden size 5120, 160 experts of 1536.
HIDDEN, HEADS, GROUPS, SIZE, ROTARY, EXPERTS, WIDTH, CHOSEN = 5120, 12, 1, 128, 64, 160, 192, 8
TOKENS = 256


Group = Literal["beside peers", "own tiles", "attention", "rows", "all shapes", "any tokens"]
SUMMED: tuple[Group, ...] = ("all shapes", "any tokens")
"""Groups of so many cases that they share one row with all of their kind."""


@dataclass(frozen=True)
class Case:
    """One kernel in one configuration on one chip.

    group: the table it stands in. kind: what a quick run has one case of, beside the kernel's
    name. peers: the rows that stand beside it, at the same tile for the same types; it is judged
    by the best of them.
    """

    configuration: str
    target: str
    launch: Recorded
    expectation: Expectation
    group: Group
    kind: str = ""
    peers: tuple[Peer, ...] = ()

    @property
    def kernel(self) -> str:
        return self.launch.name


def cases(arch: str) -> Iterator[Case]:
    """The cases of one chip that stand in the tables one by one."""
    target = Target(arch)
    yield from (_of_product(target, p, "beside peers") for p in products.beside_peers(target))
    yield from (_of_product(target, p, "own tiles") for p in products.own(target))
    yield from _attention(target)
    for configuration, launches in _others(target):
        for launch in launches:
            yield Case(configuration, arch, launch, ceilings.of_rows(target, launch.name), "rows")


def everything(arch: str) -> Iterator[Case]:
    """These, and each kernel that the products of both models on all ranks come down to."""
    yield from cases(arch)
    target = Target(arch)
    listed: dict[Group, Iterator[products.Product]] = {
        "all shapes": coverage.products(target),
        "any tokens": coverage.alike(target),
    }
    for group, candidates in listed.items():
        yield from (_of_product(target, p, group) for p in coverage.distinct(target, candidates))


def quick(arch: str) -> Iterator[Case]:
    """One case of each kernel, quantisation or type of pages, and height of a tile."""
    seen = set()
    for case in cases(arch):
        if (case.kernel, case.kind) not in seen:
            seen.add((case.kernel, case.kind))
            yield case


def _of_product(target: Target, product: products.Product, group: Group) -> Case:
    tile, quantisation = product.tile, product.quantisation
    size = (tile.block_m, tile.block_n, tile.block_k)
    return Case(
        f"{product.configuration}, {quantisation}, {'x'.join(map(str, size))}",
        target.arch,
        product.launch,
        ceilings.of_product(target, product),
        group,
        f"{quantisation}, {tile.block_m} rows",
        beside(target.arch, quantisation, size),
    )


ALIKE = "deterministic"
PHASES = {
    "decode": (1, 64, (("bf16", 64), ("bf16", 16), ("fp8", 64), ("fp8", 16))),
    "verify": (4, 16, (("bf16", 16), ("fp8", 16))),
    "prefill": (1024, 4, (("bf16", 64), ("bf16", 16), ("fp8", 16))),
    ALIKE: (1, 64, (("bf16", 64), ("fp8", 64))),
}
"""(queries of a sequence, sequences, (what the pages hold, slots of a page)) of each phase.
Deterministic inference has one kernel for all of them."""


def _attention(target: Target) -> Iterator[Case]:
    """Decode, verification of drafts and prefill, with pages in bf16 and in the chip's FP8."""
    for phase, (queries, sequences, caches) in PHASES.items():
        for pages, slots in caches:
            dtype = BF16 if pages == "bf16" else target.fp8
            for launch in _attend(target, queries, sequences, dtype, slots, phase == ALIKE):
                if launch.name == "merge" and (pages, slots) != ("bf16", 64):
                    continue  # the same kernel whatever the pages
                peers = ATTENTION.get(phase, ()) if launch.name == "attend" else ()
                yield Case(
                    f"{phase}, {pages} pages of {slots}",
                    target.arch,
                    launch,
                    ceilings.of_attention(target, phase, pages, slots, launch.name),
                    "attention",
                    f"{phase}, {pages}",
                    tuple(p for p in peers if (p.target, p.quantisation) == (target.arch, pages)),
                )


def _attend(
    target: Target, queries: int, sequences: int, dtype: torch.dtype, slots: int, alike: bool
) -> list[Recorded]:
    """Sequences of 4,096 tokens that end with `queries` new ones."""
    length = 4096
    pages = range(length // slots)
    step = Step.build([(length - queries, queries, pages)] * sequences, slots, META)
    shape = (sequences * length // slots, slots, GROUPS, SIZE)
    cache = KVCache(_empty(*shape, dtype=dtype), _empty(*shape, dtype=dtype), 0.5, 0.5)
    recorder = Recorder()
    q_THC = _empty(sequences * queries, HEADS, SIZE)
    attention.attend(recorder, target, q_THC, cache, step, SIZE**-0.5, alike)
    return recorder.launches


def _others(target: Target) -> Iterator[tuple[str, list[Recorded]]]:
    """What is not a matrix product or small beside those: (configuration, launches)."""
    x, w = _empty(TOKENS, HIDDEN), _empty(HIDDEN)
    q, k = _empty(TOKENS, HEADS, SIZE), _empty(TOKENS, GROUPS, SIZE)
    cos, head = _empty(TOKENS, ROTARY), _empty(SIZE)
    gate, bias = _empty(EXPERTS, HIDDEN, dtype=FLOAT32), _empty(EXPERTS, dtype=FLOAT32)
    experts = _empty(TOKENS, CHOSEN, dtype=INT32)
    pages, slots = _empty(64, 16, GROUPS, SIZE), _empty(TOKENS, dtype=torch.int64)
    codes = pages.to(target.fp8)
    rows = _empty(TOKENS * CHOSEN, HIDDEN)
    hidden = _empty(TOKENS, 2 * WIDTH)
    starts: dict[str, Callable[[Recorder], object]] = {
        "hidden 5120": lambda r: norm.rms_norm(r, x, w, 1e-5),
        "hidden 5120 + residual": lambda r: norm.rms_norm(r, x, w, 1e-5, x),
        "hidden 5120 + residual, and in FP8": lambda r: norm.rms_norm_quantize(
            r, target, x, w, 1e-5, x
        ),
        "row 5120 to FP8": lambda r: quantize.quantize(r, target, x),
        "width 192": lambda r: silu.silu_mul(r, hidden),
        "width 192, and in FP8": lambda r: silu.silu_mul_both(r, target, hidden),
        "width 192 to FP8": lambda r: silu.silu_mul_quantize(r, target, hidden),
        "12 + 1 heads of 128, bf16 pages": lambda r: rope.rope_store(
            r, q, k, k, cos, cos, KVCache(pages, pages), slots
        ),
        "12 + 1 heads of 128, normed, bf16 pages": lambda r: rope.rope_store(
            r, q, k, k, cos, cos, KVCache(pages, pages), slots, head, head, 1e-5
        ),
        "12 + 1 heads of 128, normed, FP8 pages": lambda r: rope.rope_store(
            r, q, k, k, cos, cos, KVCache(codes, codes, 0.5, 0.5), slots, head, head, 1e-5
        ),
        "160 experts": lambda r: route.route(r, x, gate, bias, _config()),
        "160 experts, tiles of 64": lambda r: align.align(r, experts, EXPERTS, 64),
        "8 rows of 5120": lambda r: grouped_gemm.combine(r, rows, experts, EXPERTS),
    }
    for configuration, start in starts.items():
        recorder = Recorder()
        start(recorder)
        yield configuration, recorder.launches


def _config() -> ModelConfig:
    """GLM-4.5's router."""
    return replace(
        ModelConfig.load(POCKET),
        n_routed_experts=EXPERTS,
        num_experts_per_tok=CHOSEN,
        n_group=1,
        topk_group=1,
        norm_topk_prob=True,
        routed_scaling_factor=2.5,
    )


def _empty(*shape: int, dtype: torch.dtype = BF16) -> Tensor:
    return torch.empty(*shape, dtype=dtype, device=META)
