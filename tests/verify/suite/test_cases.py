"""Cases hold what their names promise, and are the same numbers everywhere."""

import hashlib
from collections import Counter

import numpy as np
import pytest
import torch
from torch import Tensor

from glm_portable.backends import cpu, reference
from glm_portable.verify.call import OPS, WIDE
from glm_portable.verify.cases import CASES, EVERYTHING, Case, cost, digest, named, small_enough
from glm_portable.verify.cases.data import FNUZ, FP8, INT8, Source, choices, unambiguous

CHEAP = [case for case in CASES if "keys, needles" not in case.name]


def test_names_are_unique_and_every_op_has_cases() -> None:
    assert len({str(case) for case in EVERYTHING}) == len(EVERYTHING)
    counts = Counter(case.op for case in CASES)
    assert counts.keys() == set(OPS) and min(counts.values()) >= 5
    assert all(named(c.op, c.twin).twin == c.name for c in CASES if c.twin)


def test_numbers_are_on_bf16s_grid() -> None:
    """But for the case that is about float32 itself."""
    for case in CHEAP:
        if case.name == "float32 numbers":
            continue
        for name, x in case.call().tensors.items():
            if x.dtype == torch.float32 and not name.endswith("_scale"):
                if (case.op, name) not in WIDE:
                    rounded = x.bfloat16().float()
                    assert torch.equal(rounded.nan_to_num(7.0), x.nan_to_num(7.0)), (case, name)


def test_the_stream_is_the_same_on_every_machine() -> None:
    found = hashlib.sha256()
    source = Source(2026)
    for x in (source.normal(5, 7), source.uniform(-1, 3, 4), source.integers(0, 9, 6).int(),
              source.order(5, 2).int(), source.codes(3, 4, kind=FP8).view(torch.uint8),
              source.codes(3, 4, kind=INT8), source.weight(2, 3), source.scales(4, 6)):  # fmt: skip
        found.update(x.contiguous().view(torch.uint8).numpy().tobytes())
    assert found.hexdigest()[:16] == "a0c14dfec6c376d9"
    assert (
        digest([named("linear", "odd widths"), named("route", "exact ties")])[:16]
        == "090b2cf33060b3ab"
    )


def test_numbers_look_normal() -> None:
    x = Source(3).normal(64, 512)
    assert abs(x.mean().item()) < 0.02 and x.std().item() == pytest.approx(1, abs=0.02)
    loud = Source(3).normal(64, 512, outliers=True)
    assert torch.allclose(loud[:, 5], x[:, 5] * 30, rtol=2**-7) and torch.equal(loud[:, 6], x[:, 6])
    assert not torch.equal(Source(4).normal(64, 512), x)


def test_a_seed_gives_a_case_of_its_own() -> None:
    for case in (named("linear", "odd widths"), named("route", "small bias")):
        first, again, other = (case.call(seed).tensors["x"] for seed in (0, 0, 1))
        assert torch.equal(first, again) and not torch.equal(first, other)
    one, two = (named("experts", n).call().tensors["x"] for n in ("4 tokens", "16 tokens"))
    assert not torch.equal(one, two[:4])


def test_another_seed_is_fair(seed: int = 2**32 - 1) -> None:
    """On the host's backend, which sums in other orders than the reference does."""
    for case in CHEAP:
        if cost(case.call(seed)) < 150_000:
            for dtype in (torch.bfloat16, torch.float32)[: 1 if case.rounds_within else 2]:
                assert case.findings(cpu, dtype, seed) == (), case


def distance_to_a_tie(x_TR: Tensor, kind: torch.dtype) -> Tensor:
    """How near the numbers of a row come to the middle of two codes, relative to their size."""
    scaled = x_TR.double() / x_TR.double().abs().amax(-1, keepdim=True)
    scaled = scaled * (127 if kind == INT8 else 448)
    if kind == INT8:
        return ((scaled - scaled.floor()) - 0.5).abs() / 127
    codes = torch.arange(127, dtype=torch.uint8).view(FP8).double()
    middles = (codes[1:] + codes[:-1]) / 2
    size = scaled.abs()
    off = (size.unsqueeze(-1) - middles).abs().amin(-1)
    return off / size.clamp(min=2.0**-10)


@pytest.mark.parametrize("kind", [FP8, INT8], ids=str)
def test_no_number_is_near_the_middle_of_two_codes(kind: torch.dtype) -> None:
    x = Source(1).normal(40, 192, outliers=True)
    assert distance_to_a_tie(unambiguous(x), kind).min() > 3e-7
    assert torch.equal(unambiguous(torch.zeros(2, 4)), torch.zeros(2, 4))
    top = unambiguous(x).abs().amax(-1)
    assert torch.equal(torch.frexp(top)[0], torch.full_like(top, 251 / 256))


def test_routers_meet_ties_large_biases_and_extremes() -> None:
    t = named("route", "exact ties").call().tensors
    scores = (t["x"].double() @ t["gate"].double().T).sigmoid() + t["bias"].double()
    assert len(set(scores[0].tolist())) < 48 and len(scores[0]) == 64
    low, high = (
        named("route", f"bias {n}").call().tensors["bias"] for n in ("around 7", "12 to 35")
    )
    assert 6.8 <= low.min() and low.max() <= 7.1 and high.min() >= 12 and high.max() <= 35
    assert len(set(low.bfloat16().tolist())) < len(set(low.tolist())) / 4
    infinite = named("route", "infinite biases").call().tensors["bias"]
    assert infinite.isinf().sum() == 21 and (infinite == torch.inf).sum() == 1
    zero = named("route", "scores of zero").run(reference, torch.float64)
    assert zero["weights"].abs().max() == 0


def test_experts_are_empty_crowded_and_elsewhere() -> None:
    def counts(name: str) -> Counter[int]:
        return Counter(named("experts", name).call().tensors["experts"].flatten().tolist())

    assert len(counts("crowded")) == 5 and len(counts("one expert for all")) == 1
    assert len(counts("most experts empty")) <= 16
    elsewhere = counts("expert parallel")
    assert min(elsewhere) < 0 and max(elsewhere) >= 16 and set(range(16)) & elsewhere.keys()
    rows = choices(50, "spread", 16, 4)
    assert all(len(set(row)) == 4 for row in rows.tolist())


def test_fp8_meets_every_code_and_power_of_two_scales() -> None:
    t = named("linear", "fp8 of every code").call().tensors
    codes = set(t["w"].view(torch.uint8).flatten().tolist())
    assert codes == set(range(256)) - {0x7F, 0xFF}
    mantissa = torch.frexp(t["w_scale"])[0]
    assert torch.equal(mantissa, torch.full_like(mantissa, 0.5))
    kinds = {t.dtype for c in CASES if c.op == "attend" for t in c.call().tensors.values()
             if "keys" not in c.name}  # fmt: skip
    assert {FP8, FNUZ} <= kinds


def test_pages_are_out_of_order_and_needles_are_found() -> None:
    case = named("attend", "32768 keys, needles")
    t = case.call().tensors
    table = t["block_table"][0]
    assert (table.diff() < 0).any() and len(set(table.tolist())) == len(table) == 512
    assert _without(case, 25000) > 0.05 > _without(case, 25001)


def _without(case: Case, position: int) -> float:
    """How much a result changes when one value is taken out."""
    from glm_portable.verify.call import Call, perform

    call = case.call()
    values = call.tensors["v_pages"].clone()
    slots = values.shape[1]
    page = int(call.tensors["block_table"][0, position // slots])
    values[page, position % slots] = 0
    changed = Call("attend", {**call.tensors, "v_pages": values}, call.attributes)
    a, b = (perform(c, reference, torch.float32)["y"] for c in (call, changed))
    return float((a - b).norm() / a.norm())


def test_shapes_of_shards_and_edges_are_there() -> None:
    widths: set[int] = set()
    tokens: set[int] = set()
    for case in CHEAP:
        if case.op in ("linear", "experts"):
            t = case.call().tensors
            tokens.add(len(t["x"]))
            widths |= set(t["w"].shape if case.op == "linear" else t["down"].shape[1:])
    assert {192, 176, 352, 704, 88, 96, 1368} <= widths
    assert {1, 16, 17, 33, 2049} <= tokens
    edges = named("attend", "around 2048 keys").call().tensors
    assert edges["kv_lengths"].tolist() == [2047, 2048, 2049, 2049]
    verify = named("attend", "verify of 1 to 4 tokens").call().tensors["query_ends"]
    assert set(np.diff([0, *verify.tolist()]).tolist()) == {1, 2, 3, 4}


def test_the_cost_decides_what_a_simulator_gets() -> None:
    small = [case for case in CASES if small_enough(case)]
    assert {case.op for case in small} == set(OPS) and len(small) < len(CASES)
    assert cost(named("linear", "one token, 192 to 176").call()) == 192 * 176
    assert cost(named("experts", "one token").call()) == 4 * 3 * 88 * 192
    assert cost(named("attend", "decode of one").call()) == 2 * 21 * 12 * 32


def test_real_shapes_are_made_from_a_seed() -> None:
    full = [case for case in EVERYTHING if case.full]
    assert {case.op for case in full} == set(OPS)
    t = named("route", "GLM-4.5, 17 tokens").call().tensors
    assert t["gate"].shape == (160, 5120)
