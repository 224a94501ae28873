"""Drafts of the real MTP layer, of the pocket model in float32.

A forward pass rounds differently with another number of rows, so the best token can be another
where two are as good as equal. In float32 two hardly ever are; in bfloat16, with its 8 bits, they
may be, so there equality is no matter of course.
"""

import json
from collections.abc import Iterator

import pytest

from glm_portable import GLM
from glm_portable.engine.engine import Completion, Engine, EngineStats
from glm_portable.engine.grammar import Vocabulary, json_value
from glm_portable.engine.speculative import SpeculativeConfig
from glm_portable.engine.types import SamplingParams
from glm_portable.serve.structured.compiler import token_table
from glm_portable.tasks import cases
from tests.engine.fake_model import limits

GREEDY = SamplingParams(temperature=0, max_tokens=30, logprobs=0)
DRAWN = SamplingParams(temperature=1, seed=3, max_tokens=30, repetition_penalty=1.1)


@pytest.fixture(scope="module")
def glm() -> GLM:
    return GLM.load(backend="reference", dtype="float32")


@pytest.fixture(scope="module")
def prompts(glm: GLM) -> list[list[int]]:
    asked = [case for skill in ("tool_call", "chat") for case in cases(skill, True, 1)]
    return [glm.chat.encode(case.messages, case.tools).token_ids for case in asked]


def answers(
    glm: GLM, prompts: list[list[int]], speculative: SpeculativeConfig | None
) -> tuple[list[Completion], EngineStats]:
    size = limits(
        max_model_len=1024, max_num_batched_tokens=100, num_pages=200, page_size=16
    )  # long prompts are read in chunks
    with Engine(glm.model, glm.tokenizer, size, speculative=speculative) as engine:
        found = engine.generate([(p, params) for p in prompts for params in (GREEDY, DRAWN)])
        return found, engine.stats()


@pytest.fixture(scope="module")
def plain(glm: GLM, prompts: list[list[int]]) -> Iterator[list[Completion]]:
    yield answers(glm, prompts, None)[0]


@pytest.mark.parametrize("config", [SpeculativeConfig(2, "normed"), SpeculativeConfig(4)], ids=str)
def test_answers_are_the_same_token_for_token(
    glm: GLM, prompts: list[list[int]], plain: list[Completion], config: SpeculativeConfig
) -> None:
    drafted, stats = answers(glm, prompts, config)
    for ours, expected in zip(drafted, plain, strict=True):
        assert ours.token_ids == expected.token_ids
        assert (ours.text, ours.finish_reason) == (expected.text, expected.finish_reason)
        for entry, other in zip(ours.logprobs, expected.logprobs, strict=True):
            assert entry.logprob == pytest.approx(other.logprob, abs=1e-3)
    # The layer was trained to be right: were its cache or its input off by one, it would not be.
    assert stats.accepted_by_position[0] > 0.7 * stats.num_drafts
    assert list(stats.accepted_by_position) == sorted(stats.accepted_by_position, reverse=True)


def test_a_grammar_holds_among_the_accepted(glm: GLM) -> None:
    """Each token's mask depends on the token before, which may be a draft of the same step."""
    vocabulary = Vocabulary(token_table(glm.tokenizer), glm.tokenizer.encode)
    colour = {"enum": ["red", "green", "blue"]}
    fields = {name: colour for name in ("first", "second", "third")}
    schema = {"type": "object", "properties": fields, "required": list(fields)}
    grammar = vocabulary.compile(f"start: {json_value(schema)}")
    prompt = glm.chat.encode(
        [{"role": "user", "content": "Three colours as JSON, please."}]
    ).token_ids
    said = []
    for speculative in (None, SpeculativeConfig(3)):
        with Engine(glm.model, glm.tokenizer, limits(max_model_len=256), 0, speculative) as engine:
            params = SamplingParams(temperature=0, max_tokens=60, grammar=grammar)
            said += engine.generate([(prompt, params)])
            stats = engine.stats()
    assert said[0].token_ids == said[1].token_ids
    assert set(json.loads(said[1].text)) == set(fields)
    assert stats.num_accepted_tokens > 0
