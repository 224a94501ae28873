"""Norm, rotation and cache: far positions, half and whole heads, FP8 pages, pages in no order."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from glm_portable.ops import Step
from glm_portable.verify.call import Call, step_tensors
from glm_portable.verify.cases.attention import CPU, VERIFY, Heads, scattered
from glm_portable.verify.cases.case import Case
from glm_portable.verify.cases.data import FNUZ, FP8, Source

Make = Callable[[Source], Call]
FAR = (0, 1, 2, 77, 4096, 131071)
"""Of which the angles are taken; where a token's row lies in the cache is another matter."""


DEFAULT = Heads(12, 2, 64)


def rope(
    rotary: int,
    with_norm: bool,
    steps: Sequence[tuple[int, int]] = ((4, 2), (0, 4)),
    heads: Heads = DEFAULT,
    slots: int = 16,
    kind: torch.dtype | None = None,
    scales: tuple[float, float] = (1.0, 1.0),
    still: bool = False,
    size: float = 1.0,
) -> Make:
    """still: angles of 0, so that nothing rounds before FP8 does. size: of keys and values."""

    def make(source: Source) -> Call:
        step = Step.build(scattered(source, steps, slots), slots, CPU)
        tokens = step.query_ends[-1]
        cos, sin = angles(torch.tensor([FAR[i % 6] + i // 6 for i in range(tokens)]), rotary)
        if still:
            cos, sin = torch.ones_like(cos), torch.zeros_like(sin)
        counts = {"q": heads.query, "k": heads.groups, "v": heads.groups}
        tensors = {n: source.normal(tokens, h, heads.size) for n, h in counts.items()}
        tensors |= {"k": tensors["k"] * size, "v": tensors["v"] * size, "cos": cos, "sin": sin}
        pages = int(step.block_table_BP.max()) + 2
        for name in ("k_pages", "v_pages"):
            old = source.normal(pages, slots, heads.groups, heads.size)
            tensors[name] = old if kind is None else old.to(kind)
        if with_norm:
            for name in ("q_norm", "k_norm"):
                tensors[name] = (1 + source.normal(heads.size) / 8).bfloat16().float()
        attributes = {"eps": 1e-5, "k_scale": scales[0], "v_scale": scales[1]}
        return Call("rope_store", tensors | step_tensors(step), attributes)

    return make


def angles(positions: Tensor, rotary: int) -> tuple[Tensor, Tensor]:
    """cos and sin as the model rounds them, to BF16; the same bits on every machine, as float64
    rounded to 8 bits."""
    inverse = 1e6 ** (-torch.arange(0, rotary, 2, dtype=torch.float64) / rotary)
    found = positions.double().unsqueeze(1) * inverse
    found = torch.cat([found, found], -1)
    return found.cos().bfloat16().float(), found.sin().bfloat16().float()


def fp8(name: str, kind: torch.dtype, rounds: bool, make: Make) -> Case:
    label, other = ("e4m3fn", "e4m3fnuz") if kind == FP8 else ("e4m3fnuz", "e4m3fn")
    return Case("rope_store", f"{name}, {label} pages", make, rounds, twin=f"{name}, {other} pages")


SHARD = Heads(12, 1, 128)

CASES = [
    Case("rope_store", "half a head", rope(32, False)),
    Case("rope_store", "after the norm", rope(32, True)),
    Case("rope_store", "a whole head", rope(64, True)),
    Case("rope_store", "64 of 128, one group", rope(64, True, VERIFY[:3], SHARD)),
    Case("rope_store", "verify of 1 to 4 tokens", rope(64, False, VERIFY, SHARD, 64)),
    Case("rope_store", "33 tokens, pages of 8", rope(32, True, ((3, 17), (9, 16)), slots=8)),
    Case("rope_store", "one token", rope(64, True, ((40, 1),), SHARD)),
    *(fp8("half a head", kind, True, rope(32, True, kind=kind, scales=(0.5, 3.0)))
      for kind in (FP8, FNUZ)),
    *(fp8("values beyond FP8", kind, False,
          rope(32, False, kind=kind, scales=(3.0, 0.5), still=True, size=256.0))
      for kind in (FP8, FNUZ)),
    Case("rope_store", "GLM-4.5, TP1", rope(64, True, ((9, 17),), Heads(96, 8, 128)), full=True),
]  # fmt: skip
