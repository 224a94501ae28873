"""The reference against the formulas written a second time: loops over numbers, in float64."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from glm_portable.backends import reference
from glm_portable.config import ModelConfig
from glm_portable.ops import KVCache, Step, Weight
from tests.random_checkpoint import small_config

CPU = torch.device("cpu")
F64 = torch.float64


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def config(**changes: object) -> ModelConfig:
    return ModelConfig.from_dict(small_config(**changes))


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def silu(x: float) -> float:
    return x * sigmoid(x)


# Elementwise ops


@pytest.mark.parametrize("with_residual", [False, True])
def test_rms_norm(with_residual: bool) -> None:
    x, w, residual = normal(3, 8), normal(8, seed=1), normal(3, 8, seed=2)
    total = x + residual if with_residual else x
    normed, kept = reference.rms_norm(x, w, 1e-5, residual if with_residual else None)
    for t in range(3):
        size = math.sqrt(sum(v * v for v in total[t].tolist()) / 8 + 1e-5)
        expected = [v / size * g for v, g in zip(total[t].tolist(), w.tolist(), strict=True)]
        assert normed[t].tolist() == pytest.approx(expected, rel=1e-12)
    assert torch.equal(kept, total)


def test_rms_norm_of_bf16_takes_the_mean_in_float32_and_scales_in_bf16() -> None:
    x = (torch.tensor([[3e4, 1.0, -2.0, 5e-3]])).bfloat16()
    w = torch.tensor([1.0, 1.1, 0.9, 300.0]).bfloat16()
    wide = x.double()
    exact = (wide / (wide.square().mean() + 1e-5).sqrt()).bfloat16() * w
    assert torch.equal(reference.rms_norm(x, w, 1e-5)[0], exact)


def test_silu_mul_gates_with_the_first_half() -> None:
    x = normal(2, 6)
    rows = x.tolist()
    expected = [[silu(row[i]) * row[i + 3] for i in range(3)] for row in rows]
    assert torch.allclose(reference.silu_mul(x), torch.tensor(expected, dtype=F64), rtol=1e-12)


def rotated(x_TMC: Tensor, positions: list[int], rotary: int, theta: float) -> Tensor:
    """Dimensions i and i + rotary / 2 as the parts of a complex number, turned by its angle."""
    out, half = x_TMC.clone(), rotary // 2
    for t, position in enumerate(positions):
        for i in range(half):
            angle = torch.tensor(position * theta ** (-2 * i / rotary), dtype=F64)
            turn = torch.polar(torch.ones((), dtype=F64), angle)
            turned = torch.complex(x_TMC[t, :, i], x_TMC[t, :, i + half]) * turn
            out[t, :, i], out[t, :, i + half] = turned.real, turned.imag
    return out


@pytest.mark.parametrize("rotary", [4, 8])
@pytest.mark.parametrize("with_norm", [False, True])
def test_rope_turns_the_first_dimensions_after_the_norm(rotary: int, with_norm: bool) -> None:
    positions, theta = [0, 1, 1000], 1e4
    q, k = normal(3, 4, 8), normal(3, 2, 8, seed=1)
    angles = torch.tensor(
        [[p * theta ** (-2 * i / rotary) for i in range(rotary // 2)] * 2 for p in positions],
        dtype=F64,
    )
    norms = (normal(8, seed=2), normal(8, seed=3)) if with_norm else (None, None)
    got = reference.rope(q, k, angles.cos(), angles.sin(), norms[0], norms[1], 1e-5)
    for x, w, y in zip((q, k), norms, got, strict=True):
        if w is not None:
            x = x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * w
        assert torch.allclose(y, rotated(x, positions, rotary, theta), rtol=1e-10, atol=1e-12)
        assert torch.equal(y[..., rotary:], x[..., rotary:]) or with_norm


@pytest.mark.parametrize("with_norm", [False, True])
def test_rope_store_writes_the_rotated_keys(with_norm: bool) -> None:
    step = Step.build([(1, 2, [3, 1])], 2, CPU)
    cache, expected = (KVCache(torch.zeros(4, 2, 2, 8), torch.zeros(4, 2, 2, 8)) for _ in range(2))
    q, k, v = (normal(2, n, 8, seed=n) for n in (4, 2, 3))
    v, angles = v[:, :2], normal(2, 2, seed=5).repeat(1, 2)
    w, u = (normal(8, seed=6), normal(8, seed=7)) if with_norm else (None, None)
    got = reference.rope_store(q, k, v, angles.cos(), angles.sin(), cache, step, w, u, 1e-5)
    turned_q, turned_k = reference.rope(q, k, angles.cos(), angles.sin(), w, u, 1e-5)
    reference.store(turned_k, v, expected, step)
    assert torch.equal(got, turned_q)
    assert torch.equal(cache.k_PSGC, expected.k_PSGC) and cache.k_PSGC.any()
    assert torch.equal(cache.v_PSGC, expected.v_PSGC) and cache.v_PSGC.any()


# Linear


def test_linear_adds_its_bias() -> None:
    x, w, bias = normal(2, 3), normal(4, 3, seed=1), normal(4, seed=2)
    expected = [
        [sum(x[t, r].item() * w[n, r].item() for r in range(3)) + bias[n].item() for n in range(4)]
        for t in range(2)
    ]
    got = reference.linear(x, Weight(w, F64), bias)
    assert torch.allclose(got, torch.tensor(expected, dtype=F64), rtol=1e-12)


@pytest.mark.parametrize("kind", [torch.float8_e4m3fn, torch.int8])
@pytest.mark.parametrize("block", [None, (4, 4), (1, 4)])
def test_a_quantised_weight_is_each_number_times_its_scale(
    kind: torch.dtype, block: tuple[int, int] | None
) -> None:
    n, r = 6, 10  # blocks of 4 leave a rest in both directions
    data = (normal(n, r) * 20).to(kind)
    rows, columns = block or (1, r)
    scale = torch.rand(-(-n // rows), -(-r // columns)) + 0.5
    w = Weight(data, F64, scale, block)
    expected = torch.tensor(
        [
            [data[i, j].item() * scale[i // rows, j // columns].item() for j in range(r)]
            for i in range(n)
        ],
        dtype=F64,
    )
    assert torch.equal(w.dequantize(), expected)
    assert torch.allclose(reference.linear(normal(3, r), w), normal(3, r) @ expected.T)


@pytest.mark.parametrize(
    ("kind", "top"), [(torch.float8_e4m3fn, 448.0), (torch.int8, 127.0)], ids=["fp8", "int8"]
)
def test_dynamic_activations_are_rounded_with_one_scale_a_token(
    kind: torch.dtype, top: float
) -> None:
    x = torch.tensor([[1.0, -4.0, 0.013], [1e-4, 3e-4, -2e-4], [0.0, 0.0, 0.0]], dtype=F64)
    w = Weight(torch.eye(3).to(kind), F64, torch.ones(3, 1), dynamic_activations=True)
    got = reference.linear(x, w)
    for t in range(2):
        scale = x[t].abs().max().item() / top
        scaled = x[t] / scale
        rounded = scaled.round() if kind == torch.int8 else scaled.to(kind).to(F64)
        assert got[t].tolist() == pytest.approx((rounded * scale).tolist(), rel=1e-12)
        assert got[t].abs().max() == x[t].abs().max()
    assert got[2].tolist() == [0, 0, 0]
    assert not torch.equal(got[:2], x[:2])


# Routing


def routed(
    x: Tensor, gate: Tensor, bias: Tensor, cfg: ModelConfig
) -> list[list[tuple[int, float]]]:
    """The rule of choice in plain Python: [(expert, weight), ...] per token."""
    out = []
    for row in (x @ gate.T).tolist():
        scores = [sigmoid(v) for v in row]
        choice = {e: s + b for e, (s, b) in enumerate(zip(scores, bias.tolist(), strict=True))}
        size = len(scores) // cfg.n_group
        groups = [sorted(range(g * size, g * size + size)) for g in range(cfg.n_group)]
        worth = [sum(sorted((choice[e] for e in g), reverse=True)[:2]) for g in groups]
        best = sorted(range(cfg.n_group), key=lambda g: (-worth[g], g))[: cfg.topk_group]
        allowed = [e for g in best for e in groups[g]]
        chosen = sorted(allowed, key=lambda e: (-choice[e], e))[: cfg.num_experts_per_tok]
        total = sum(scores[e] for e in chosen) if cfg.norm_topk_prob else 1.0
        out.append([(e, scores[e] / total * cfg.routed_scaling_factor) for e in chosen])
    return out


@pytest.mark.parametrize("bias_range", [(-0.1, 0.1), (6.8, 7.1), (12.0, 35.0)])
@pytest.mark.parametrize(("groups", "kept"), [(1, 1), (4, 2), (2, 1)])
@pytest.mark.parametrize("normalised", [True, False])
def test_route_by_biased_score_weigh_by_score(
    bias_range: tuple[float, float], groups: int, kept: int, normalised: bool
) -> None:
    cfg = config(
        n_routed_experts=16, num_experts_per_tok=4, n_group=groups, topk_group=kept,
        norm_topk_prob=normalised, routed_scaling_factor=2.5,
    )  # fmt: skip
    x, gate = normal(20, 8), normal(16, 8, seed=1)
    low, high = bias_range
    bias = low + (high - low) * torch.rand(16, generator=torch.Generator().manual_seed(2)).double()
    weights, experts = reference.route(x, gate, bias, cfg)
    expected = routed(x, gate, bias, cfg)
    assert experts.dtype == torch.int32
    assert experts.tolist() == [[e for e, _ in row] for row in expected]
    for got, row in zip(weights.tolist(), expected, strict=True):
        assert got == pytest.approx([w for _, w in row], rel=1e-10)


def test_of_equal_scores_the_lowest_experts_and_groups_win() -> None:
    cfg = config(n_routed_experts=64, num_experts_per_tok=8)
    x, gate, bias = torch.ones(3, 8), torch.zeros(64, 8), torch.zeros(64)
    weights, experts = reference.route(x, gate, bias, cfg)
    assert experts.tolist() == [list(range(8))] * 3
    assert weights.tolist() == [pytest.approx([1 / 8] * 8)] * 3
    bias[[9, 40, 63]] = 1.0
    experts = reference.route(x, gate, bias, cfg)[1]
    assert experts.tolist() == [[9, 40, 63, 0, 1, 2, 3, 4]] * 3
    cfg = config(n_routed_experts=64, num_experts_per_tok=8, n_group=8, topk_group=2)
    experts = reference.route(x, gate, torch.zeros(64), cfg)[1]
    assert experts.tolist() == [list(range(8))] * 3


def test_route_computes_bf16_tokens_in_float32() -> None:
    cfg = config(n_routed_experts=64, num_experts_per_tok=8, routed_scaling_factor=2.5)
    x, gate = normal(50, 32).bfloat16(), normal(64, 32, seed=1).float()
    bias = 20 + 0.1 * normal(64, seed=2).float()
    weights, experts = reference.route(x, gate, bias, cfg)
    assert weights.dtype == torch.float32
    exact = reference.route(x.double(), gate.double(), bias.double(), cfg)
    assert torch.equal(experts, exact[1])
    assert torch.allclose(weights.double(), exact[0], rtol=1e-5)
    rounded = reference.route(x, gate, bias.bfloat16().float(), cfg)[1]
    assert (rounded != experts).any(-1).float().mean() > 0.5  # why the bias stays float32


def test_scores_of_zero_leave_finite_weights() -> None:
    cfg = config(n_routed_experts=16, num_experts_per_tok=4)
    x, gate = torch.ones(1, 8), torch.full((16, 8), -1e3)
    assert reference.route(x, gate, torch.zeros(16), cfg)[0].tolist() == [[0.0] * 4]


# Experts


@pytest.mark.parametrize("quantised", [False, True])
def test_experts_sum_what_each_token_chose(quantised: bool) -> None:
    t, d, f, e = 5, 6, 4, 7
    x, gate_up, down = normal(t, d), normal(e, 2 * f, d, seed=1), normal(e, d, f, seed=2)
    experts = torch.tensor(
        [[0, 3], [3, 0], [6, 3], [3, 5], [0, 6]], dtype=torch.int32
    )  # 1, 2 and 4 are empty
    weights = torch.rand(t, 2, generator=torch.Generator().manual_seed(3))
    packed = [Weight(gate_up, F64), Weight(down, F64)]
    if quantised:
        packed = [
            Weight(w.data.to(torch.float8_e4m3fn), F64, torch.rand(e, w.data.shape[1], 1) + 0.5)
            for w in packed
        ]
    gate_up, down = (w.dequantize() for w in packed)
    expected = torch.zeros(t, d, dtype=F64)
    for token in range(t):
        for expert, weight in zip(experts[token].tolist(), weights[token].tolist(), strict=True):
            h = gate_up[expert] @ x[token]
            gated = torch.tensor([silu(h[i].item()) * h[i + f].item() for i in range(f)], dtype=F64)
            expected[token] += weight * (down[expert] @ gated)
    got = reference.experts(x, packed[0], packed[1], weights, experts)
    assert torch.allclose(got, expected, rtol=1e-10)


# Attention over pages


def dense_attention(q: Tensor, k: Tensor, v: Tensor, first: int, scale: float) -> Tensor:
    """Queries at positions first, first + 1, ... over one sequence's keys; loops throughout."""
    out = torch.zeros_like(q)
    share = q.shape[1] // k.shape[1]
    for t in range(q.shape[0]):
        for h in range(q.shape[1]):
            seen = range(first + t + 1)
            scores = [scale * (q[t, h] @ k[j, h // share]).item() for j in seen]
            top = max(scores)
            weights = [math.exp(s - top) for s in scores]
            total = sum(weights)
            for j in seen:
                out[t, h] += weights[j] / total * v[j, h // share]
    return out


def test_attend_mixes_prefill_chunk_verify_and_decode_over_scattered_pages() -> None:
    size, heads, groups, c = 4, 6, 2, 8
    sequences = [
        (0, 5, [9, 2]),  # a whole prefill
        (7, 1, [4, 11]),  # decode that fills its last page
        (8, 1, [0, 5, 7]),  # decode that begins a page
        (3, 6, [10, 1, 3]),  # a chunk that begins within a page
        (4, 3, [6, 8]),  # verify
    ]
    step = Step.build(sequences, size, CPU)
    tokens = step.query_ends[-1]
    cache = KVCache(normal(12, size, groups, c, seed=1), normal(12, size, groups, c, seed=2))
    q, k, v = normal(tokens, heads, c), normal(tokens, groups, c, seed=3), normal(tokens, groups, c)
    reference.store(k, v, cache, step)
    got = reference.attend(q, cache, step, 0.3)
    begin = 0
    for start, count, pages in sequences:
        keys, values = (
            torch.cat([p[page] for page in pages])[: start + count]
            for p in (cache.k_PSGC, cache.v_PSGC)
        )
        assert torch.equal(keys[start:], k[begin : begin + count])
        expected = dense_attention(q[begin : begin + count], keys, values, start, 0.3)
        assert torch.allclose(got[begin : begin + count], expected, rtol=1e-9, atol=1e-12)
        begin += count


def test_store_writes_its_slots_and_no_others() -> None:
    cache = KVCache(torch.zeros(4, 2, 1, 3), torch.zeros(4, 2, 1, 3))
    step = Step.build([(1, 2, [3, 1])], 2, CPU)
    reference.store(torch.ones(2, 1, 3), torch.full((2, 1, 3), 2.0), cache, step)
    written = cache.k_PSGC.flatten(0, 1).sum((1, 2)).nonzero().flatten().tolist()
    assert written == [2, 7]  # slot 0 of page 1 and slot 1 of page 3
    assert torch.equal(cache.v_PSGC, 2 * cache.k_PSGC)


@settings(max_examples=30, deadline=None)
@given(
    counts=st.lists(st.integers(1, 5), min_size=1, max_size=5),
    order=st.permutations(range(8)),
)
def test_any_chunking_and_any_page_order_gives_the_whole_prefill(
    counts: list[int], order: list[int]
) -> None:
    length, size = sum(counts), 4
    q, k, v = normal(length, 4, 8), normal(length, 2, 8, seed=1), normal(length, 2, 8, seed=2)

    def run(pieces: list[int], pages: list[int]) -> Tensor:
        cache = KVCache(
            torch.zeros(8, size, 2, 8, dtype=F64), torch.zeros(8, size, 2, 8, dtype=F64)
        )
        out, done = [], 0
        for count in pieces:
            step = Step.build([(done, count, pages)], size, CPU)
            part = slice(done, done + count)
            reference.store(k[part], v[part], cache, step)
            out.append(reference.attend(q[part], cache, step, 0.5))
            done += count
        return torch.cat(out)

    whole = run([length], list(range(8)))
    assert torch.allclose(run(counts, order), whole, rtol=1e-10, atol=1e-12)


def test_pack_keeps_the_layout_on_disk() -> None:
    w = Weight(normal(2, 3), F64)
    assert reference.pack(w) is w
    assert torch.equal(w.dequantize(), w.data)
