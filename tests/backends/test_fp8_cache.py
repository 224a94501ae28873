"""Keys and values in FP8 pages, on the host's backends: every way to attend, both dialects."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from glm_portable.backends import cpu, reference
from glm_portable.backends.cpu import native
from glm_portable.config import ModelConfig
from glm_portable.ops import KVCache, Step
from glm_portable.verify.cases import STEPS
from glm_portable.verify.cases.data import normal
from glm_portable.verify.metrics import faults
from tests.random_checkpoint import small_config

OCP, FNUZ = torch.float8_e4m3fn, torch.float8_e4m3fnuz
CPU = torch.device("cpu")
HEADS, GROUPS, SIZE, SLOTS, PAGES = 12, 2, 32, 8, 34
BACKENDS = pytest.mark.parametrize("backend", [reference, cpu], ids=["reference", "cpu"])
KINDS = pytest.mark.parametrize("kind", [OCP, FNUZ], ids=str)
SCALES = pytest.mark.parametrize("scales", [(0.5, 3.0), (3.0, 0.5)], ids=str)


def pages(kind: torch.dtype, scales: tuple[float, float]) -> KVCache:
    k, v = (normal(PAGES, SLOTS, GROUPS, SIZE, seed=s).to(kind) for s in (1, 2))
    return KVCache(k, v, *scales)


def wide(cache: KVCache) -> KVCache:
    """What the pages stand for, in float64 and without scales."""
    k, v = cache.k_PSGC.double() * cache.k_scale, cache.v_PSGC.double() * cache.v_scale
    return KVCache(k, v)


def run(backend: Any, step: Step, cache: KVCache, dtype: torch.dtype) -> Tensor:
    tokens, still = step.query_ends[-1], torch.zeros(step.query_ends[-1], SIZE // 2, dtype=dtype)
    q, k, v = (
        normal(tokens, n, SIZE, seed=3 + i).to(dtype) for i, n in enumerate((HEADS, GROUPS, GROUPS))
    )
    q = backend.rope_store(q, k, v, still + 1, still, cache, step)
    result: Tensor = backend.attend(q, cache, step, SIZE**-0.5)
    return result


@BACKENDS
@KINDS
@SCALES
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", STEPS)
def test_attention_over_fp8_pages(
    backend: Any,
    kind: torch.dtype,
    scales: tuple[float, float],
    dtype: torch.dtype,
    name: str,
) -> None:
    """Against float64 over what the pages hold after the store, which rounds alike everywhere."""
    step = Step.build(STEPS[name], SLOTS, CPU)
    cache = pages(kind, scales)
    got = run(backend, step, cache, dtype)
    q = normal(step.query_ends[-1], HEADS, SIZE, seed=3)
    exact = reference.attend(q.double(), wide(cache), step, SIZE**-0.5)
    plain = reference.attend(q.to(dtype), cache, step, SIZE**-0.5)
    assert faults(got, plain, exact) == []


@KINDS
@SCALES
def test_all_ways_to_attend_agree(
    kind: torch.dtype, scales: tuple[float, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A processor's own kernel is for BF16 pages: FP8 pages must not reach it."""
    monkeypatch.setattr(native, "attend", None)
    monkeypatch.setattr(native, "library", lambda: object())
    step = Step.build(STEPS["mixed"], SLOTS, CPU)
    got = run(cpu, step, pages(kind, scales), torch.bfloat16)
    monkeypatch.setattr(cpu, "FEW_QUERIES", 0)
    long = run(cpu, step, pages(kind, scales), torch.bfloat16)
    assert torch.allclose(got.float(), long.float(), rtol=2**-5, atol=2**-6)


@BACKENDS
@KINDS
@SCALES
def test_stored_numbers_are_divided_rounded_and_limited(
    backend: Any, kind: torch.dtype, scales: tuple[float, float]
) -> None:
    step = Step.build([(6, 3, [4, 2])], SLOTS, CPU)
    kept_k, kept_v = (torch.zeros(5, SLOTS, 1, 4).to(kind) for _ in range(2))
    cache = KVCache(kept_k, kept_v, *scales)
    k = torch.tensor([1.0, -1e5, 448.0, 0.3]).expand(3, 1, 4).bfloat16()
    v = torch.tensor([-0.0, 1e5, -17.3, 1e-9]).expand(3, 1, 4).bfloat16()
    still = torch.zeros(3, 2).bfloat16()
    backend.rope_store(k, k, v, still + 1, still, cache, step)
    top = torch.finfo(kind).max
    for x, kept, scale in ((k, cache.k_PSGC, scales[0]), (v, cache.v_PSGC, scales[1])):
        rows = kept.flatten(0, 1)[[38, 39, 16]].float()
        assert torch.equal(rows, (x.float() / scale).clamp(-top, top).to(kind).float())
        assert rows.abs().max() == top and rows.isfinite().all()
        assert kept.float().count_nonzero() == rows.count_nonzero()


@KINDS
def test_scales_may_reach_what_the_codes_cannot(kind: torch.dtype) -> None:
    """With a scale of 4 a value of 900 comes back within one rounding; without, as the largest."""
    step = Step.build([(0, 1, [0])], SLOTS, CPU)
    back = []
    for scale in (1.0, 4.0):
        kept_k, kept_v = (torch.zeros(1, SLOTS, 1, 32).to(kind) for _ in range(2))
        cache = KVCache(kept_k, kept_v, 1.0, scale)
        q, v = torch.ones(1, 1, 32), torch.full((1, 1, 32), 900.0)
        cpu.rope_store(q, q, v, torch.ones(1, 2), torch.zeros(1, 2), cache, step)
        back.append(cpu.attend(q, cache, step, 0.1)[0, 0, 0].item())
    assert back[0] == torch.finfo(kind).max
    assert back[1] == pytest.approx(900, rel=2**-4)


@KINDS
def test_allocated_pages_are_zero_and_a_byte_a_number(kind: torch.dtype) -> None:
    config = ModelConfig.from_dict(small_config())
    cache = KVCache.allocate(config, 3, SLOTS, kind, CPU)
    shape = (3, SLOTS, config.num_key_value_heads, config.head_dim)
    for kept in (cache.k_PSGC, cache.v_PSGC):
        assert kept.dtype == kind and tuple(kept.shape) == shape
        assert kept.nbytes == kept.numel() and not kept.float().any()
    assert cache.k_scale == cache.v_scale == 1.0


def forget_k_scale(q: Tensor, cache: KVCache, step: Step, scale: float) -> Tensor:
    return cpu.attend(q, KVCache(cache.k_PSGC, cache.v_PSGC, 1.0, cache.v_scale), step, scale)


def forget_v_scale(q: Tensor, cache: KVCache, step: Step, scale: float) -> Tensor:
    return cpu.attend(q, KVCache(cache.k_PSGC, cache.v_PSGC, cache.k_scale), step, scale)


@pytest.mark.parametrize("broken", [forget_k_scale, forget_v_scale])
def test_a_forgotten_scale_is_noticed(broken: Callable[..., Tensor]) -> None:
    step, cache = Step.build(STEPS["mixed"], SLOTS, CPU), pages(OCP, (0.5, 3.0))
    q = normal(step.query_ends[-1], HEADS, SIZE, seed=3)
    exact = reference.attend(q.double(), wide(cache), step, SIZE**-0.5)
    plain = reference.attend(q.bfloat16(), cache, step, SIZE**-0.5)
    assert faults(cpu.attend(q.bfloat16(), cache, step, SIZE**-0.5), plain, exact) == []
    assert faults(broken(q.bfloat16(), cache, step, SIZE**-0.5), plain, exact) != []
