"""What a cached beginning changes in a real model's answers: no token, and where not one bit."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from glm_portable.engine.engine import Completion, Engine
from glm_portable.engine.types import SamplingParams
from glm_portable.glm import GLM
from glm_portable.ops import Step

PARAMS = SamplingParams(temperature=0, max_tokens=6, logprobs=3, ignore_eos=True)
MIB = 2**20


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def glm(request: pytest.FixtureRequest) -> GLM:
    return GLM.load(backend="cpu", dtype=request.param)


def engine_of(glm: GLM, **options: Any) -> Engine:
    limits = glm.limits(max_model_len=256, max_num_seqs=2, memory_bytes=64 * MIB, **options)
    return Engine(glm.model, glm.tokenizer, limits)


def prompts() -> list[list[int]]:
    """Lengths around pages and units; the last one shares 70 tokens with the one before it."""
    generator = torch.Generator().manual_seed(3)
    found = [torch.randint(0, 1200, (n,), generator=generator).tolist() for n in (65, 100, 140)]
    return [*found, found[-1][:70] + found[0][:30]]


def ask(engine: Engine, prompt: Sequence[int]) -> Completion:
    return engine.generate([(prompt, PARAMS)])[0]


def answers(glm: GLM, **options: Any) -> tuple[list[Completion], list[Completion], int]:
    """Of a cache that is always empty, and of one that holds what came before; tokens found."""
    with engine_of(glm, **options) as engine:
        cold = []
        for prompt in prompts():
            engine._core.pool.forget()
            cold.append(ask(engine, prompt))
        found = engine.stats().prefix_cache_hits
        warm = [ask(engine, prompt) for prompt in [*prompts(), *prompts()]][-len(cold) :]
        assert found == 0 and engine.stats().pages_used == 0
        return cold, warm, engine.stats().prefix_cache_hits


def test_a_hit_changes_no_bit_in_deterministic_inference(glm: GLM) -> None:
    """Not of tokens and not of log probabilities, whatever the backend does with its rows: what
    computes here was not loaded for it and promises nothing, as on an accelerator."""
    cold, warm, hits = answers(glm, enable_deterministic_inference=True)
    assert cold == warm and hits >= 64 * 6


def test_a_hit_changes_no_token() -> None:
    """In other steps the same sums round differently: in float32 by so much."""
    cold, warm, hits = answers(GLM.load(backend="cpu", dtype="float32"))
    assert hits > 64 * 6
    for a, b in zip(cold, warm, strict=True):
        assert a.token_ids == b.token_ids
        for one, other in zip(a.logprobs, b.logprobs, strict=True):
            assert one.logprob == pytest.approx(other.logprob, abs=1e-4)


def test_a_hit_changes_no_token_of_an_fp8_cache() -> None:
    glm = GLM.load(backend="cpu", dtype="float32", kv_cache_dtype="fp8", on_note=print)
    cold, warm, _ = answers(glm, enable_deterministic_inference=True)
    assert cold == warm


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_what_fp8_pages_cost_the_pocket_model(backend: str) -> None:
    """As docs/kv-cache.md says: the likeliest token changes rarely, its probability little."""
    plain, fp8 = (
        GLM.load(backend=backend, kv_cache_dtype=kind, on_note=lambda note: None)
        for kind in ("auto", "fp8")
    )
    question = [{"role": "user", "content": "What is the weather in Paris?"}]
    prompt = plain.chat.encode(question).token_ids
    ids = [*prompt, *plain.generate(prompt, temperature=0.0, max_tokens=60).token_ids]
    a, b = (glm.logits(ids)[len(prompt) :].log_softmax(-1) for glm in (plain, fp8))
    divergence = (a.exp() * (a - b)).sum(-1)
    assert 0 < divergence.mean() < 0.02
    assert (a.argmax(-1) == b.argmax(-1)).float().mean() > 0.95


def test_a_cache_of_fp8_holds_what_was_stored() -> None:
    glm = GLM.load(backend="cpu", kv_cache_dtype="fp8_e4m3", on_note=lambda note: None)
    caches = glm.model.allocate(1, 16)
    assert {c.k_PSGC.dtype for c in caches} == {c.v_PSGC.dtype for c in caches}
    assert caches[0].k_PSGC.dtype == torch.float8_e4m3fn
    with torch.inference_mode():
        step = Step.build([(0, 4, [0])], 16, torch.device("cpu"))
        glm.model.forward(torch.tensor([1, 2, 3, 4]), step, caches)
    assert all(cache.k_PSGC[0, :4].float().any() for cache in caches[:4])
