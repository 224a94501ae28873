"""Greedy answers of the real model, alone and in every kind of company.

Float32 on the reference backend. A matrix product may round differently with another number of
rows, so equality of tokens is not a matter of course: it holds where the best logit leads by more
than that rounding, which the checkpoint's head gain of 4 provides.
"""

from collections.abc import Iterator

import pytest
import torch

from glm_portable import ops
from glm_portable.checkpoint import Checkpoint
from glm_portable.config import ModelConfig
from glm_portable.engine.engine import Engine
from glm_portable.engine.types import Delta, SamplingParams
from glm_portable.model import Model
from tests.engine.fake_model import WordStream, limits
from tests.random_checkpoint import small_config, write_checkpoint

GREEDY = SamplingParams(temperature=0, max_tokens=20, ignore_eos=True, logprobs=0)
PROMPTS = [
    torch.randint(0, 250, (length,), generator=torch.Generator().manual_seed(length)).tolist()
    for length in (1, 3, 9, 17, 30, 44)
]


class Ids:
    """A tokenizer for a vocabulary without text."""

    vocab_size = 257

    def stream(self) -> WordStream:
        return WordStream()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    folder = tmp_path_factory.mktemp("checkpoint")
    write_checkpoint(folder, small_config(use_qk_norm=True))
    config = ModelConfig.load(folder)
    return Model(config, ops.load("reference"), Checkpoint(folder, config, dtype=torch.float32))


@pytest.fixture(scope="module")
def alone(model: Model) -> Iterator[list[tuple[int, ...]]]:
    """Each prompt with the engine to itself, prefilled whole."""
    with Engine(model, Ids(), limits(max_model_len=128)) as engine:
        yield [engine.generate([(prompt, GREEDY)])[0].token_ids for prompt in PROMPTS]


@pytest.mark.parametrize("budget", [1, 2, 7, 16, 200])
def test_neighbours_and_chunks_do_not_change_the_answer(
    model: Model, alone: list[tuple[int, ...]], budget: int
) -> None:
    size = limits(max_model_len=128, max_num_batched_tokens=budget)
    with Engine(model, Ids(), size) as engine:
        answers = engine.generate([(prompt, GREEDY) for prompt in PROMPTS])
    assert [answer.token_ids for answer in answers] == alone
    assert len(set(alone)) == len(PROMPTS)


@pytest.mark.parametrize("page_size", [1, 3, 16])
def test_preemption_does_not_change_the_answer(
    model: Model, alone: list[tuple[int, ...]], page_size: int
) -> None:
    size = limits(max_model_len=64, num_pages=-(-80 // page_size), page_size=page_size)
    with Engine(model, Ids(), size) as engine:
        answers = engine.generate([(prompt, GREEDY) for prompt in PROMPTS])
        assert engine.stats().preemptions > 0
    assert [answer.token_ids for answer in answers] == alone


def test_late_arrivals_do_not_change_the_answer(model: Model, alone: list[tuple[int, ...]]) -> None:
    """Each request arrives when the one before it has said a few tokens."""
    answers: list[list[int]] = [[] for _ in PROMPTS]
    with Engine(model, Ids(), limits(max_model_len=128, max_num_batched_tokens=12)) as engine:

        def submit(index: int) -> None:
            def on_delta(delta: Delta) -> None:
                answers[index].extend(delta.token_ids)
                if len(answers[index]) == 3 + index and index + 1 < len(PROMPTS):
                    submit(index + 1)

            engine.submit(PROMPTS[index], GREEDY, on_delta)

        submit(0)
        for _ in range(100):
            engine.generate([([5], GREEDY)])  # one more neighbour, and a way to wait
            if all(len(answer) >= 20 for answer in answers):
                break
    assert [tuple(answer) for answer in answers] == alone


def test_log_probabilities_are_the_models_own(model: Model) -> None:
    """Teacher-forced through the engine's own answer, to the rounding of float32."""
    with Engine(model, Ids(), limits(max_model_len=128, max_num_batched_tokens=16)) as engine:
        (answer,) = engine.generate([(PROMPTS[3], GREEDY)])
    ids = [*PROMPTS[3], *answer.token_ids]
    with torch.inference_mode():
        step = ops.Step.build([(0, len(ids), range(10))], 4, model.ops.device)
        logits = model.logits(model.forward(torch.tensor(ids), step, model.allocate(10, 4)))
    expected = logits.log_softmax(-1)[len(PROMPTS[3]) - 1 : -1]
    for entry, row in zip(answer.logprobs, expected, strict=True):
        assert entry.token_id == int(row.argmax())
        assert entry.logprob == pytest.approx(float(row.max()), abs=1e-4)
