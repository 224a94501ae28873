"""Attention over pages: every mix of steps, lengths to 128k, both dialects of FP8, needles."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from glm_portable.ops import Step
from glm_portable.verify.call import Call, step_tensors
from glm_portable.verify.cases.case import Case
from glm_portable.verify.cases.data import FNUZ, FP8, Source

Make = Callable[[Source], Call]
CPU = torch.device("cpu")

# (cached tokens, new tokens, pages) per sequence, enough for 8 slots a page
STEPS: dict[str, list[tuple[int, int, list[int]]]] = {
    "decode of one": [(20, 1, [3, 1, 2])],
    "first token": [(0, 1, [5])],
    "decode of unequal lengths": [
        (70, 1, [9, 2, 4, 1, 0, 11, 30, 22, 17]),
        (7, 1, [3]),
        (8, 1, [5, 6]),
        (3, 1, [7]),
        (64, 1, [31, 29, 27, 25, 23, 21, 19, 15, 13]),
    ],
    "prefill": [(0, 100, [12, 3, 8, 1, 30, 2, 4, 9, 5, 6, 7, 0, 10])],
    "mixed": [
        (0, 70, [14, 2, 4, 6, 8, 10, 12, 1, 3]),
        (23, 1, [5, 7, 9]),
        (10, 3, [11, 13]),
        (30, 3, [15, 16, 17, 18, 19]),
        (40, 73, [31, 30, 29, 28, 27, 26, 25, 24, 23, 22, 21, 20, 0, 32, 33]),
    ],
    "nine queries": [(15, 9, [3, 4, 5])],
}
VERIFY = [(30, 1), (15, 2), (16, 3), (61, 4), (0, 4), (127, 2)]
EDGES = [(2046, 1), (2047, 1), (2048, 1), (2045, 4)]


@dataclass(frozen=True)
class Heads:
    """query, key/value heads and their size."""

    query: int = 12
    groups: int = 2
    size: int = 32


DEFAULT = Heads()


def scattered(
    source: Source, lengths: Sequence[tuple[int, int]], slots: int
) -> list[tuple[int, int, list[int]]]:
    """Sequences of (cached, new) tokens on pages in no order, a few pages belonging to nobody."""
    counts = [-(-(cached + new) // slots) for cached, new in lengths]
    order = iter(source.order(sum(counts) + 3)[0].tolist())
    return [
        (cached, new, [next(order) for _ in range(count)])
        for (cached, new), count in zip(lengths, counts, strict=True)
    ]


def attend(
    steps: str | Sequence[tuple[int, int]],
    heads: Heads = DEFAULT,
    slots: int = 16,
    sharp: float = 1.0,
    kind: torch.dtype | None = None,
    scales: tuple[float, float] = (1.0, 1.0),
    change: Callable[[dict[str, Tensor]], None] = lambda tensors: None,
) -> Make:
    """steps: a name in STEPS, or (cached, new) tokens of sequences on scattered pages of `slots`.

    Slots that no sequence reaches hold large numbers, as others' old tokens would.
    """

    def make(source: Source) -> Call:
        layout = STEPS[steps] if isinstance(steps, str) else scattered(source, steps, slots)
        step = Step.build(layout, slots, CPU)
        pages = max(max(owned) for _, _, owned in layout) + 2
        tensors = {"q": (source.normal(step.query_ends[-1], heads.query, heads.size)) * sharp}
        reached = _reached(layout, pages, slots)
        for name in ("k_pages", "v_pages"):
            x = source.normal(pages, slots, heads.groups, heads.size)
            tensors[name] = torch.where(reached.view(pages, slots, 1, 1), x, x * 64)
        tensors |= step_tensors(step)
        change(tensors)
        if kind is not None:
            for name in ("k_pages", "v_pages"):
                top = torch.finfo(kind).max
                tensors[name] = tensors[name].clamp(-top, top).to(kind)
        k_scale, v_scale = scales
        attributes = {"scale": heads.size**-0.5, "k_scale": k_scale, "v_scale": v_scale}
        return Call("attend", tensors, attributes)

    return make


def _reached(layout: Sequence[tuple[int, int, list[int]]], pages: int, slots: int) -> Tensor:
    reached = torch.zeros(pages, slots, dtype=torch.bool)
    for cached, new, owned in layout:
        for i in range(-(-(cached + new) // slots)):
            reached[owned[i], : cached + new - i * slots] = True
    return reached


def key_slots(tensors: dict[str, Tensor], b: int, positions: Sequence[int]) -> Tensor:
    """Where sequence b keeps the tokens at some positions."""
    at, slots = torch.tensor(positions), tensors["k_pages"].shape[1]
    return tensors["block_table"][b, at // slots].long() * slots + at % slots


def needles(*positions: int) -> Callable[[dict[str, Tensor]], None]:
    """Keys of the first sequence that its last query finds among all others."""

    def change(tensors: dict[str, Tensor]) -> None:
        keys, q = tensors["k_pages"], tensors["q"][-1]
        groups = keys.shape[2]
        direction = q.view(groups, -1, q.shape[-1])[:, 0]
        place = key_slots(tensors, 0, positions)
        keys.flatten(0, 1)[place] = (direction * 2).bfloat16().float()

    return change


def equal_keys(tensors: dict[str, Tensor]) -> None:
    """All scores are equal: the result is the mean of the values."""
    tensors["k_pages"][:] = tensors["k_pages"][:1, :1]


def loud_channels(tensors: dict[str, Tensor]) -> None:
    """Keys have outlier channels, as after q and k projections with a bias."""
    tensors["k_pages"][..., 5::16] *= 16
    tensors["q"][..., 5::16] /= 8


def nan_query(tensors: dict[str, Tensor]) -> None:
    tensors["q"][1, 0, 0] = torch.nan


def nan_value(tensors: dict[str, Tensor]) -> None:
    """In the second sequence: no other may see it."""
    tensors["v_pages"].flatten(0, 1)[key_slots(tensors, 1, [2])] = torch.nan


def fp8(name: str, kind: torch.dtype, k: float, v: float, heads: Heads = DEFAULT) -> Case:
    label = "e4m3fn" if kind == FP8 else "e4m3fnuz"
    other = "e4m3fnuz" if kind == FP8 else "e4m3fn"
    return Case("attend", f"{name}, {label} pages, scales {k:g} and {v:g}",
                attend(name, heads, kind=kind, scales=(k, v)),
                twin=f"{name}, {other} pages, scales {k:g} and {v:g}")  # fmt: skip


SMALL = Heads(4, 1, 64)
ONE = Heads(1, 1, 32)
REAL = Heads(12, 1, 128)

CASES = [
    *(Case("attend", name, attend(name)) for name in STEPS),
    Case("attend", "sharp scores", attend("mixed", Heads(4, 4), sharp=8.0)),
    Case("attend", "12 query heads a group", attend("mixed", Heads(24, 2))),
    Case("attend", "pages of 8", attend("mixed", slots=8)),
    Case("attend", "pages of 64", attend(VERIFY, slots=64)),
    Case("attend", "pages of 128", attend([(130, 1), (0, 40), (255, 2)], slots=128)),
    Case("attend", "verify of 1 to 4 tokens", attend(VERIFY)),
    Case("attend", "decode of 17 sequences", attend([(5 * i % 37, 1) for i in range(17)])),
    Case("attend", "heads of 128, one group", attend(VERIFY[:3], REAL)),
    Case("attend", "around 2048 keys", attend(EDGES, SMALL)),
    Case("attend", "equal keys", attend("mixed", change=equal_keys)),
    Case("attend", "outlier channels", attend("mixed", change=loud_channels)),
    Case("attend", "one query is NaN", attend("mixed", change=nan_query)),
    Case("attend", "one sequence's values are NaN",
         attend("decode of unequal lengths", change=nan_value)),
    *(fp8("mixed", kind, *scales) for scales in ((0.5, 3.0), (3.0, 0.5)) for kind in (FP8, FNUZ)),
    *(fp8("decode of unequal lengths", kind, 2.0, 0.25, SMALL) for kind in (FP8, FNUZ)),
    Case("attend", "32768 keys, needles", attend([(32767, 1)], SMALL, 64,
                                                 change=needles(0, 13600, 25000, 32767))),
    Case("attend", "131072 keys, needles", attend([(131071, 1)], ONE, 64,
                                                  change=needles(5, 27000, 54000, 131071))),
    Case("attend", "GLM-4.5, TP8, 4096 keys", attend([(4095, 1), (4090, 4)], REAL, 64), full=True),
    Case("attend", "GLM-4.5, TP8, 131072 keys", attend([(131071, 1)], REAL, 64,
         change=needles(3, 70000)), full=True),
    Case("attend", "GLM-4.5, TP8, prefill of 2049", attend([(0, 2049)], REAL, 64), full=True),
]  # fmt: skip
