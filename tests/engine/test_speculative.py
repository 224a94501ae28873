"""Drafts change how soon tokens come and nothing else, on a model that notices every mix-up."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from hypothesis import event, given, settings
from hypothesis import strategies as st
from torch import Tensor

from glm_portable.engine.acceptance import Turn, accept
from glm_portable.engine.core import EngineCore
from glm_portable.engine.drawing import uniform
from glm_portable.engine.engine import Engine
from glm_portable.engine.request import Request
from glm_portable.engine.sampling import RowSampler, Sampler
from glm_portable.engine.speculative import SpeculativeConfig
from glm_portable.engine.types import Delta, SamplingParams, TokenLogprob
from glm_portable.errors import UsageError
from glm_portable.ops import KVCache, Step
from tests.engine.fake_drafts import DraftingModel, always
from tests.engine.fake_model import (
    VOCAB,
    FakeModel,
    Words,
    answer,
    core,
    limits,
    request,
    word,
)

QUALITIES: dict[str, Callable[[int], bool]] = {
    "right": always,
    "mostly": lambda value: value % 4 != 0,
    "rarely": lambda value: value % 4 == 0,
    "wrong": lambda value: False,
}


@dataclass
class Case:
    """A request, the step before which it arrives, and the one before which it is cancelled."""

    prompt: list[int]
    params: SamplingParams
    arrival: int = 0
    cancel: int | None = None
    deltas: list[Delta] = field(default_factory=list)

    def submit(self, engine: EngineCore, name: str) -> None:
        assert self.params.max_tokens is not None
        length = len(self.prompt) + self.params.max_tokens
        engine.add(request(name, self.prompt, self.params, self.deltas.append, length))

    @property
    def tokens(self) -> list[int]:
        return [token for delta in self.deltas for token in delta.token_ids]

    @property
    def logprobs(self) -> list[TokenLogprob]:
        return [entry for delta in self.deltas for entry in delta.logprobs]

    @property
    def text(self) -> str:
        return "".join(delta.text for delta in self.deltas)

    @property
    def end(self) -> tuple[Any, ...]:
        assert all(delta.finish_reason is None for delta in self.deltas[:-1])
        return self.deltas[-1].finish_reason, self.deltas[-1].stop_reason


def drafting(model: FakeModel, k: int, **sizes: int) -> EngineCore:
    return EngineCore(model, limits(**sizes), VOCAB, SpeculativeConfig(k))


def play(engine: EngineCore, cases: Sequence[Case]) -> None:
    """Arrivals and cancellations, checking the page tables after every step."""
    now = 0
    while engine.requests or any(case.arrival >= now for case in cases):
        for name, case in enumerate(cases):
            if case.arrival == now:
                case.submit(engine, str(name))
            if case.cancel == now:
                engine.abort(str(name))
        engine.step()
        tables = [r.sequence.block_table for r in engine.requests.values()]
        held = [page for table in tables for page in table]
        assert len(set(held)) == engine.stats().pages_used
        now += 1
        assert now < 1000, "requests are starving"
    assert engine.stats().pages_used == engine.stats().failed_steps == 0


def plainly(case: Case) -> Case:
    """The same request without drafts, alone."""
    alone = Case(case.prompt, case.params)
    play(core(FakeModel()), [alone])
    return alone


TOKENS = st.integers(0, VOCAB - 1)
WITHOUT_DRAW = st.just(dict[str, Any](temperature=0))
DRAWS = st.fixed_dictionaries(
    {"temperature": st.sampled_from([0.3, 1.0]), "seed": st.integers(0, 9)},
    optional={"top_p": st.just(0.7), "top_k": st.just(5), "min_p": st.just(0.1)},
)
RULES = st.fixed_dictionaries(
    {"max_tokens": st.integers(1, 12) | st.just(12)},
    optional={
        "repetition_penalty": st.just(1.5),
        "presence_penalty": st.just(1.0),
        "frequency_penalty": st.just(0.5),
        "logit_bias": st.dictionaries(TOKENS, st.sampled_from([-3.0, 3.0]), max_size=2),
        "stop_token_ids": st.lists(TOKENS, max_size=3).map(tuple),
        # A token's second letter alone, or two tokens in a row: within what one step accepts.
        "stop": st.lists(TOKENS.map(lambda t: word(t)[1:] + "a"), max_size=4).map(tuple),
        "ignore_eos": st.booleans(),
        "logprobs": st.integers(0, 2),
    },
)


@st.composite
def params(draw: st.DrawFn) -> SamplingParams:
    rules: dict[str, Any] = draw(RULES)
    least = draw(st.just(0) | st.integers(0, rules["max_tokens"]))
    return SamplingParams(**rules, **draw(WITHOUT_DRAW | DRAWS), min_tokens=least)


CASES = st.lists(
    st.builds(
        Case,
        # Some of many tokens, and some that begin alike.
        prompt=st.lists(TOKENS, min_size=1, max_size=10)
        | st.integers(1, 10).map(lambda length: [3] * length),
        params=params(),
        arrival=st.integers(0, 5),
        cancel=st.none() | st.integers(0, 12),
    ),
    min_size=1,
    max_size=5,
)


@given(
    CASES,
    st.integers(1, 5),
    st.sampled_from(sorted(QUALITIES)),
    st.integers(0, 4),
    st.integers(1, 4),
    st.integers(1, 4),
    st.integers(1, 24),
)
@settings(max_examples=50, deadline=None)
def test_an_answer_is_the_same_with_drafts_and_without(
    cases: list[Case],
    k: int,
    quality: str,
    spare: int,
    page_size: int,
    max_num_seqs: int,
    budget: int,
) -> None:
    """Whatever the drafts are worth, with neighbours, chunks, shared pages, preemption, cancels."""
    engine = drafting(
        DraftingModel(QUALITIES[quality]),
        k,
        num_pages=-(-21 // page_size) + spare,  # the longest request fits, two of them may not
        page_size=page_size,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=budget,
    )
    play(engine, cases)
    for case in cases:
        expected = plainly(case)
        if case.deltas and case.end == ("abort", None):
            count = len(case.tokens)
            assert case.tokens == expected.tokens[:count]
            assert case.logprobs == expected.logprobs[:count]
            assert expected.text.startswith(case.text)
        elif case.deltas or case.cancel is None:
            assert case.tokens == expected.tokens
            assert case.logprobs == expected.logprobs
            assert (case.text, case.end) == (expected.text, expected.end)
    stats = engine.stats()
    assert stats.generation_tokens == sum(len(case.tokens) for case in cases)
    assert stats.num_accepted_tokens <= stats.num_draft_tokens <= k * stats.num_drafts
    event(f"preempted: {stats.preemptions > 0}")
    event(f"accepted: {stats.num_accepted_tokens > 0}")


ENDLESS = SamplingParams(temperature=0, ignore_eos=True, max_tokens=16)


@pytest.mark.parametrize("k", [1, 2, 5])
@pytest.mark.parametrize("budget", [3, 64])
def test_the_layer_sees_every_token(k: int, budget: int) -> None:
    """Of prompts read in chunks, found in the cache, and after a preemption read again: else its
    guesses were wrong."""
    cases = [Case([*range(4 + n % 3), n], ENDLESS, arrival=n) for n in range(8)]
    sizes = {"num_pages": 20, "page_size": 2, "max_num_batched_tokens": budget}
    engine = drafting(DraftingModel(), k, **sizes)
    play(engine, cases)
    stats = engine.stats()
    assert stats.preemptions > 0 and stats.prefix_cache_hits > 0
    assert stats.num_accepted_tokens == stats.num_draft_tokens > 0
    for case in cases:
        assert case.tokens == answer(case.prompt, 16, eos=None)


def test_a_step_gives_several_tokens_in_one_delta() -> None:
    case = Case([1, 2, 3], replace(ENDLESS, logprobs=0))
    model = DraftingModel()
    engine = drafting(model, 3)
    play(engine, [case])
    assert [len(delta.token_ids) for delta in case.deltas] == [1, 4, 4, 4, 3]
    assert [len(delta.logprobs) for delta in case.deltas] == [1, 4, 4, 4, 3]
    # No more is drafted than the answer may still have.
    assert model.steps == [[3], [4], [4], [4], [3]]
    # The prompt and each step's tokens, and after all but the first draft a token alone.
    assert model.mtp_steps == 3 + 3 + 3 + 2 + 1
    stats = engine.stats()
    assert (stats.num_drafts, stats.num_draft_tokens) == (4, 11)
    assert (stats.num_accepted_tokens, stats.accepted_by_position) == (11, (4, 4, 3))


def test_wrong_drafts_cost_steps_of_the_same_number() -> None:
    case = Case([1, 2, 3], ENDLESS)
    engine = drafting(DraftingModel(QUALITIES["wrong"]), 2)
    play(engine, [case])
    assert case.tokens == answer(case.prompt, 16, eos=None)
    assert [len(delta.token_ids) for delta in case.deltas] == [1] * 16
    assert engine.stats().accepted_by_position == (0, 0)
    assert engine.stats().num_drafts == 14  # none for the first token, none for the last


def test_nothing_is_told_after_a_stop_among_the_accepted() -> None:
    tokens = answer([1, 2, 3], 16, eos=None)
    case = Case([1, 2, 3], replace(ENDLESS, stop_token_ids=(tokens[2],), logprobs=0))
    engine = drafting(DraftingModel(), 5)
    play(engine, [case])
    assert case.tokens == tokens[:3]
    assert case.end == ("stop", tokens[2])
    assert case.text == "".join(map(word, tokens[:2]))
    assert len(case.logprobs) == engine.stats().generation_tokens == 3
    assert engine.stats().accepted_by_position == (1, 1, 0, 0, 0)


def test_drafts_take_no_room_from_anybody() -> None:
    """One page for each of three: the drafts of a step fit nowhere, and nobody is preempted."""
    cases = [Case([n], replace(ENDLESS, max_tokens=4)) for n in range(3)]
    engine = drafting(DraftingModel(), 5, num_pages=3, page_size=4)
    play(engine, cases)
    assert engine.stats().preemptions == 0
    assert [case.tokens for case in cases] == [answer([n], 4, eos=None) for n in range(3)]


def test_drafts_get_the_budget_that_tokens_leave() -> None:
    model = DraftingModel()
    engine = drafting(model, 4, max_num_batched_tokens=6)
    cases = [Case([1], replace(ENDLESS, max_tokens=8)), Case([2] * 9, ENDLESS, arrival=1)]
    play(engine, cases)
    # The prompt's first chunk leaves none, its second all that it does not need.
    assert model.steps[:3] == [[1], [1, 5], [2, 4]]
    assert max(map(sum, model.steps)) <= 6


class Breaking(DraftingModel):
    """Fails to draft once it has been told to."""

    broken = False

    def mtp_forward(
        self, next_ids_T: Tensor, hidden_TD: Tensor, step: Step, caches: Sequence[KVCache]
    ) -> tuple[Tensor, Tensor]:
        if self.broken:
            raise RuntimeError("no draft")
        return super().mtp_forward(next_ids_T, hidden_TD, step, caches)


def test_a_failing_draft_ends_the_steps_requests_but_their_tokens_come_first() -> None:
    model = Breaking()
    engine = drafting(model, 2)
    short, long = Case([1], replace(ENDLESS, max_tokens=4)), Case([2], ENDLESS)
    short.submit(engine, "short")
    long.submit(engine, "long")
    engine.step()
    model.broken = True
    engine.step()
    assert short.tokens == answer([1], 4, eos=None)
    assert short.end == ("length", None)  # it had all it asked for
    assert long.tokens == answer([2], 4, eos=None)
    assert long.end == ("error", None)
    assert long.deltas[-1].error is not None and "the server's log" in long.deltas[-1].error
    assert (engine.stats().failed_steps, engine.stats().pages_used) == (1, 0)
    model.broken = False
    later = Case([3], ENDLESS)
    later.submit(engine, "later")
    while engine.requests:
        engine.step()
    assert later.tokens == answer([3], 16, eos=None)
    assert engine.stats().healthy


def test_a_caller_that_raises_or_cancels_in_the_middle_ends_alone() -> None:
    with Engine(DraftingModel(), Words(), limits(), speculative=SpeculativeConfig(3)) as engine:
        deltas: list[Delta] = []

        def cancel(delta: Delta) -> None:
            deltas.append(delta)
            engine.cancel(request_id)

        def give_up(delta: Delta) -> None:
            raise ValueError("gone")

        request_id = engine.submit([5, 6], replace(ENDLESS, max_tokens=60), cancel)
        engine.submit([7, 8], ENDLESS, give_up)
        (whole,) = engine.generate([([1, 2], ENDLESS)])
        assert list(whole.token_ids) == answer([1, 2], 16, eos=None)
        engine.drain(30)
        assert deltas[-1].finish_reason == "abort"
        assert len(deltas) <= 3
        assert engine.stats().pages_used == 0


def test_logits_that_are_not_numbers_end_a_request_after_its_tokens() -> None:
    class Poisoned(DraftingModel):
        def logits(self, hidden_TD: Tensor) -> Tensor:
            logits = super().logits(hidden_TD)
            if len(logits) == 4:
                logits[2:] = float("nan")
            return logits

    case = Case([1, 2], ENDLESS)
    engine = drafting(Poisoned(), 3)
    play(engine, [case])
    assert case.tokens == answer([1, 2], 3, eos=None)
    assert case.end == ("error", None)


def test_a_model_without_the_layer_is_refused() -> None:
    with pytest.raises(UsageError, match="no MTP layer to draft with; leave"):
        Engine(FakeModel(), Words(), limits(), speculative=SpeculativeConfig(1))


class Grammar(RowSampler):
    """Allows only even tokens after the first multiple of five, as a grammar does after a tag."""

    def __init__(self, params: SamplingParams) -> None:
        super().__init__(params, 0, (), [0])
        self.begun = False

    @property
    def adjusts(self) -> bool:
        return self.begun

    @property
    def removed_ids(self) -> Sequence[int]:
        return range(1, VOCAB, 2) if self.begun else ()

    def append(self, token_id: int) -> None:
        super().append(token_id)
        self.begun |= token_id % 5 == 0


def test_a_row_may_begin_to_adjust_among_the_accepted() -> None:
    """Then the tokens after that one are sampled again."""
    best = [1, 3, 5, 7, 9]
    logits = torch.zeros(len(best), VOCAB)
    for row, token in zip(logits, best, strict=True):
        row[token], row[token - 1] = 2, 1
    one = request("0", [0], ENDLESS, lambda delta: None, 30)
    one.row = Grammar(ENDLESS)
    turn = Turn(one, 0, [1, 3, 5, 6])
    accept([turn], logits, Sampler(VOCAB))
    assert one.sequence.token_ids[1:] == [1, 3, 5, 6, 8]
    assert turn.num_accepted == 4


# The distribution of what is accepted.

SEEDS = 3000
P_FIRST = torch.tensor([0.4, 0.3, 0.15, 0.1, 0.05])
P_SECOND = torch.tensor([0.1, 0.2, 0.4, 0.2, 0.1])
CRITICAL = 23.51
"""Of chi-square with 4 degrees of freedom: exceeded by chance once in 10,000."""


def chi_square(tokens: Sequence[int], p: Tensor) -> float:
    expected = p * len(tokens)
    counts = torch.bincount(torch.tensor(tokens), minlength=len(p))
    return float(((counts - expected) ** 2 / expected).sum())


def drawn(draft: int) -> list[list[int]]:
    """The tokens of one step of a request of each seed, with `draft` for its first token."""
    turns = []
    for seed in range(SEEDS):
        params = SamplingParams(temperature=1, seed=seed, ignore_eos=True)
        one = request(str(seed), [0], params, lambda delta: None, 9)
        turns.append(Turn(one, 2 * seed, [draft]))
    logits = torch.stack([P_FIRST, P_SECOND]).log().repeat(SEEDS, 1)
    accept(turns, logits, Sampler(len(P_FIRST)))
    return [turn.request.sequence.token_ids[1:] for turn in turns]


@pytest.mark.parametrize("draft", [0, 4])
def test_accepted_and_corrected_tokens_have_the_models_distribution(draft: int) -> None:
    answers = drawn(draft)
    assert chi_square([tokens[0] for tokens in answers], P_FIRST) < CRITICAL
    accepted = [tokens for tokens in answers if len(tokens) == 2]
    assert all(tokens[0] == draft for tokens in accepted)
    assert all(tokens[0] != draft for tokens in answers if len(tokens) == 1)
    # A draw of the second position must not know of the first: here it was conditioned on it.
    assert chi_square([tokens[1] for tokens in accepted], P_SECOND) < CRITICAL


def test_the_distribution_test_sees_a_wrong_rule() -> None:
    """Rejecting and then drawing from all of p favours the draft; accepting all does so more."""

    def draw(seed: int, position: int) -> int:
        [point] = uniform([(seed, position)]).tolist()
        return int(torch.searchsorted(P_FIRST.cumsum(0), point, right=True))

    draft = 1
    first = [draw(seed, 0) for seed in range(SEEDS)]
    assert chi_square(first, P_FIRST) < CRITICAL
    again = [t if t == draft else draw(seed, 1) for seed, t in enumerate(first)]
    assert chi_square(again, P_FIRST) > CRITICAL
    assert chi_square([draft] * SEEDS, P_FIRST) > CRITICAL


def test_a_request_that_fails_while_taking_a_token_fails_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine = drafting(DraftingModel(), 3)
    bad, good = Case([1], ENDLESS), Case([2], ENDLESS)
    bad.submit(engine, "bad")
    good.submit(engine, "good")
    engine.step()
    take = Request.append

    def append(self: Request, sampled: Any) -> Delta:
        if self.request_id == "bad" and self.num_generated == 2:
            raise ValueError("a broken decoder")
        return take(self, sampled)

    monkeypatch.setattr(Request, "append", append)
    engine.step()
    assert bad.tokens == answer([1], 2, eos=None)
    assert bad.end == ("error", None)
    while engine.requests:
        engine.step()
    assert good.tokens == answer([2], 16, eos=None)
    assert engine.stats().failed_steps == 0
