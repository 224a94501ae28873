"""Deterministic inference on the host: no bit of an answer depends on anything but its request."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from glm_portable.engine import core
from glm_portable.engine.acceptance import accept
from glm_portable.engine.engine import Completion, Engine
from glm_portable.engine.limits import EngineLimits
from glm_portable.engine.sampling import Sampler
from glm_portable.engine.types import SamplingParams
from glm_portable.glm import GLM
from tests.engine import fake_model

GREEDY = SamplingParams(temperature=0, max_tokens=4, logprobs=3, ignore_eos=True)
LONG = replace(GREEDY, max_tokens=24)
DRAWN = replace(GREEDY, temperature=1, top_p=0.9, seed=5, logprobs=1)
TWO_DRAFTS = {"method": "mtp", "num_speculative_tokens": 2}
MIB = 2**20

Asked = Sequence[tuple[list[int], SamplingParams]]


def load(dtype: str, kv_cache_dtype: str = "auto", drafts: bool = False, **options: Any) -> GLM:
    return GLM.load(
        dtype=dtype,
        kv_cache_dtype=kv_cache_dtype,
        speculative_config=TWO_DRAFTS if drafts else None,
        enable_deterministic_inference=True,
        on_note=lambda note: None,
        **({"backend": "cpu"} | options),
    )


def asked() -> list[tuple[list[int], SamplingParams]]:
    """Lengths around pages; the last two begin as others do."""
    generator = torch.Generator().manual_seed(3)
    lengths = (49, 33, 3, 17, 3, 81)
    found = [torch.randint(0, 1200, (n,), generator=generator).tolist() for n in lengths]
    found += [found[-1][:70] + found[0][:30], found[1] + found[4]]
    return [(ids, DRAWN if i % 3 == 1 else GREEDY) for i, ids in enumerate(found)]


def engine_of(glm: GLM, **options: Any) -> Engine:
    sizes = {"max_model_len": 256, "max_num_seqs": 8, "memory_bytes": 64 * MIB} | options
    return Engine(glm.model, glm.tokenizer, glm.limits(**sizes), speculative=glm.speculative)


def alone(glm: GLM, requests: Asked) -> list[Completion]:
    """Each request in an engine that knows nothing else."""
    with engine_of(glm, enable_prefix_caching=False) as engine:
        return [engine.generate([one])[0] for one in requests]


def check(glm: GLM, requests: Asked, expected: list[Completion]) -> None:
    """In company, with a cache that holds nothing, then what the first round left."""
    with engine_of(glm) as engine:
        assert engine.generate(requests) == expected
        before = engine.stats().prefix_cache_hits
        assert engine.generate(requests) == expected
        # All full pages but for a prompt's last token: no unit larger than a page holds them up.
        found = sum((len(ids) - 1) // 16 * 16 for ids, _ in requests)
        assert engine.stats().prefix_cache_hits - before == found
        assert engine.generate(requests[-3:]) == expected[-3:]
    with engine_of(glm, max_num_batched_tokens=24) as engine:
        assert engine.generate(requests) == expected


@pytest.mark.parametrize("drafts", [False, True], ids=["plain", "drafts"])
@pytest.mark.parametrize("kv_cache_dtype", ["auto", "fp8"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_alone_in_company_and_from_the_cache(dtype: str, kv_cache_dtype: str, drafts: bool) -> None:
    glm = load(dtype, kv_cache_dtype, drafts)
    check(glm, asked(), alone(glm, asked()))


def test_with_drafts_and_without() -> None:
    """Rows do not change in company, and drafts are company."""
    assert alone(load("bfloat16"), asked()) == alone(load("bfloat16", drafts=True), asked())


@pytest.mark.parametrize("drafts", [False, True], ids=["plain", "drafts"])
def test_after_a_preemption(drafts: bool) -> None:
    glm = load("bfloat16", drafts=drafts)
    requests = [(ids[:15], LONG) for ids, _ in asked() if len(ids) >= 15]
    expected = alone(glm, requests)
    with engine_of(glm, max_model_len=48, num_gpu_blocks_override=8, memory_bytes=None) as engine:
        assert engine.generate(requests) == expected
        assert engine.stats().preemptions > 0


@pytest.fixture(scope="module")
def bf16() -> tuple[GLM, list[Completion]]:
    glm = load("bfloat16", drafts=True)
    return glm, alone(glm, asked())


@settings(max_examples=5, deadline=None)
@given(
    order=st.permutations(range(8)).flatmap(
        lambda order: st.integers(1, 8).map(lambda count: order[:count])
    ),
    tokens=st.integers(16, 300),
    seqs=st.integers(1, 8),
    pages=st.integers(12, 40),
    caching=st.booleans(),
)
def test_in_any_company(
    bf16: tuple[GLM, list[Completion]],
    order: list[int],
    tokens: int,
    seqs: int,
    pages: int,
    caching: bool,
) -> None:
    """In any order, of any size of step and cache."""
    glm, expected = bf16
    options = {
        "max_num_seqs": seqs,
        "max_num_batched_tokens": tokens,
        "num_gpu_blocks_override": pages,
        "enable_prefix_caching": caching,
    }
    with engine_of(glm, max_model_len=160, memory_bytes=None, **options) as engine:
        found = engine.generate([asked()[i] for i in order])
    assert found == [expected[i] for i in order]


def test_on_the_reference() -> None:
    glm = load("float32", backend="reference")
    requests = [(ids[:20], GREEDY) for ids, _ in asked()[:2]]
    expected = alone(glm, requests)
    with engine_of(glm) as engine:
        assert engine.generate(requests) == expected
        assert engine.generate(requests) == expected
        assert engine.stats().prefix_cache_hits == 2 * 16


def test_the_log_probabilities_of_a_prompt() -> None:
    glm = load("bfloat16")
    requests = [(ids, replace(GREEDY, max_tokens=1, prompt_logprobs=2)) for ids, _ in asked()[:4]]
    expected = alone(glm, requests)
    with engine_of(glm, max_num_batched_tokens=50) as engine:
        assert engine.generate(requests) == expected


def test_units_are_for_backends_that_promise_nothing() -> None:
    limits = load("float32").limits(max_model_len=64, max_num_batched_tokens=16, max_num_seqs=2)
    assert limits.enable_deterministic_inference and limits.batch_invariant and limits.unit == 0
    others = replace(limits, batch_invariant=False, max_num_batched_tokens=64)
    assert isinstance(others, EngineLimits) and others.unit == 64


class OnChip(Tensor):
    """A tensor that is not on the host until it is brought there."""

    def cpu(self, *args: Any, **kwargs: Any) -> Tensor:
        return self.as_subclass(Tensor)


class ModelOnChip(fake_model.FakeModel):
    def logits(self, hidden_TD: Tensor) -> Tensor:
        return super().logits(hidden_TD).as_subclass(OnChip)


@pytest.mark.parametrize("deterministic", [True, False])
@pytest.mark.parametrize("batch_invariant", [True, False])
def test_rows_are_sampled_on_the_host_where_the_chip_sums_by_their_number(
    monkeypatch: pytest.MonkeyPatch, deterministic: bool, batch_invariant: bool
) -> None:
    seen: list[type[Tensor]] = []

    def noted(turns: Any, logits_RV: Tensor, sampler: Sampler) -> None:
        seen.append(type(logits_RV))
        accept(turns, logits_RV.as_subclass(Tensor), sampler)

    monkeypatch.setattr(core, "accept", noted)
    options = {"batch_invariant": batch_invariant, "max_num_batched_tokens": 64}
    engine = fake_model.core(ModelOnChip(), enable_deterministic_inference=deterministic, **options)
    for name in "ab":
        engine.add(fake_model.request(name, [3, 4], DRAWN, lambda delta: None, 4))
    engine.step()
    assert seen == [Tensor if deterministic and batch_invariant else OnChip]
