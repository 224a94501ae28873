"""Log probabilities of the prompt: every position once, whatever chunks it is read in."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from glm_portable.engine import logprobs
from glm_portable.engine.engine import Engine
from glm_portable.engine.logprobs import PromptLogprobs, token_logprobs
from glm_portable.engine.types import Delta, SamplingParams, TokenLogprob
from glm_portable.errors import UsageError
from tests.engine.fake_model import (
    VOCAB,
    FakeModel,
    Words,
    core,
    limits,
    logits_of,
    prefix_hash,
    request,
)

PROMPT = [3, 14, 15, 9, 26, 5, 35, 8, 9, 7, 9, 32]
ASKING = SamplingParams(temperature=0, max_tokens=2, logprobs=1, prompt_logprobs=3)


def expected(prompt: Sequence[int], count: int) -> list[TokenLogprob]:
    """By the definition, one position at a time."""
    found = []
    for position in range(1, len(prompt)):
        logits_V = logits_of(torch.tensor([prefix_hash(prompt[:position])]))[0]
        logprobs_V = logits_V.log_softmax(-1)
        order = logprobs_V.argsort(descending=True).tolist()
        top = tuple((token, float(logprobs_V[token])) for token in order[:count])
        token = prompt[position]
        rank = order.index(token) + 1
        found.append(TokenLogprob(token, float(logprobs_V[token]), top, rank))
    return found


def check(found: Sequence[TokenLogprob], prompt: Sequence[int], count: int = 3) -> None:
    wanted = expected(prompt, count)
    assert [(e.token_id, e.rank) for e in found] == [(e.token_id, e.rank) for e in wanted]
    for entry, want in zip(found, wanted, strict=True):
        assert entry.logprob == pytest.approx(want.logprob, abs=1e-5)
        assert dict(entry.top) == pytest.approx(dict(want.top), abs=1e-5)
        if entry.rank == 1:  # a client finds a greedy token by comparing floats
            assert entry.logprob == max(value for _, value in entry.top)


@pytest.mark.parametrize("rows", [1, 2, 128])
@pytest.mark.parametrize("chunk", [1, 3, 5, 64])
def test_every_position_once_in_chunks_and_slices(
    monkeypatch: pytest.MonkeyPatch, chunk: int, rows: int
) -> None:
    monkeypatch.setattr(logprobs, "_ROWS", rows)
    seen: list[int] = []

    class Watched(FakeModel):
        def logits(self, hidden_TD: Tensor) -> Tensor:
            seen.append(len(hidden_TD))
            return super().logits(hidden_TD)

    engine = core(Watched(), max_num_batched_tokens=chunk)
    deltas: list[Delta] = []
    engine.add(request("a", PROMPT, ASKING, deltas.append, len(PROMPT) + 2))
    other: list[Delta] = []
    engine.add(request("b", PROMPT[:5], SamplingParams(max_tokens=1), other.append, 6))
    while engine.requests:
        engine.step()
    check(deltas[0].prompt_logprobs, PROMPT)
    assert not any(delta.prompt_logprobs for delta in [*deltas[1:], *other])
    assert max(seen) <= max(rows, 2)  # two requests sample at once


def test_preemption_in_the_middle_of_the_prompt() -> None:
    """The older request's growth takes the pages of the one that is still reading."""
    engine = core(FakeModel(), num_pages=5, page_size=4, max_num_batched_tokens=3)
    older = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)
    engine.add(request("older", [1, 2, 3], older, lambda delta: None, 15))
    deltas: list[Delta] = []
    engine.add(request("a", PROMPT, ASKING, deltas.append, len(PROMPT) + 2))
    read = []
    while engine.requests:
        engine.step()
        if "a" in engine.requests:
            read.append(engine.requests["a"].sequence.num_computed)
    restarts = [before for before, after in zip(read, read[1:], strict=False) if after < before]
    assert restarts and 0 < restarts[0] < len(PROMPT), read
    check(deltas[0].prompt_logprobs, PROMPT)


def test_a_cached_prompt_is_read_again() -> None:
    with Engine(FakeModel(), Words(), limits(enable_prefix_caching=True)) as engine:
        plain = SamplingParams(temperature=0, max_tokens=2)
        answers = [engine.generate([(PROMPT, params)])[0] for params in (plain, ASKING, plain)]
        assert engine.stats().prefix_cache_hits > 0
    check(answers[1].prompt_logprobs, PROMPT)
    assert len({answer.token_ids for answer in answers}) == 1


def test_a_slice_of_glms_vocabulary_is_small() -> None:
    assert logprobs._ROWS * 151_552 * 4 < 100_000_000  # bytes, in float32


def test_of_one_token_there_are_none() -> None:
    with Engine(FakeModel(), Words(), limits()) as engine:
        [answer] = engine.generate([([5], ASKING)])
    assert answer.prompt_logprobs == ()


def test_whole_answers_carry_them() -> None:
    with Engine(FakeModel(), Words(), limits()) as engine:
        [answer, plain] = engine.generate([(PROMPT, ASKING), (PROMPT, SamplingParams())])
    check(answer.prompt_logprobs, PROMPT)
    assert plain.prompt_logprobs == ()


def test_a_prompt_without_numbers_fails() -> None:
    class Broken(FakeModel):
        """NaN at one position of the prompt, and numbers at its end."""

        def logits(self, hidden_TD: Tensor) -> Tensor:
            logits_TV = super().logits(hidden_TD)
            logits_TV[hidden_TD[:, 0] == prefix_hash(PROMPT[:4])] = float("nan")
            return logits_TV

    engine = core(Broken())
    deltas: list[Delta] = []
    engine.add(request("a", PROMPT, ASKING, deltas.append, len(PROMPT) + 2))
    while engine.requests:
        engine.step()
    assert [delta.finish_reason for delta in deltas] == ["error"]
    assert "no finite logits" in str(deltas[0].error)


def test_a_position_that_was_skipped_is_an_error() -> None:
    scores = PromptLogprobs(PROMPT, 0, VOCAB)
    with pytest.raises(AssertionError, match="start=4 leaves out positions from 0"):
        scores.take(FakeModel().logits, torch.ones(2, 1), start=4)


def test_ranks_count_the_tokens_above() -> None:
    logits_RV = torch.tensor([[0.0, 3.0, 1.0, 2.0]]).expand(2, -1)
    found = token_logprobs(logits_RV, torch.tensor([2, 1]), [0, 2], 4, ranks=True)
    assert [entry.rank for entry in found] == [3, 1]
    assert [len(entry.top) for entry in found] == [0, 2]


def test_more_alternatives_than_tokens_are_refused() -> None:
    engine = Engine(FakeModel(), Words(), limits())
    with pytest.raises(UsageError, match="prompt_logprobs is -1"):
        engine.submit(PROMPT, SamplingParams(prompt_logprobs=-1), lambda delta: None)
