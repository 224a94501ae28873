"""Masks: what a grammar allows, what else may not override it, and what happens when it fails."""

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
import torch

from glm_portable.engine import grammar
from glm_portable.engine.core import EngineCore
from glm_portable.engine.engine import Engine
from glm_portable.engine.grammar import (
    Grammar,
    GrammarError,
    GrammarState,
    TokenTable,
    Vocabulary,
    Words,
)
from glm_portable.engine.sampling import unpack
from glm_portable.engine.speculative import SpeculativeConfig
from glm_portable.engine.types import Delta, SamplingParams
from glm_portable.errors import UsageError
from tests.engine import fake_model
from tests.engine.fake_drafts import DraftingModel, always
from tests.engine.fake_model import EOS, VOCAB, FakeModel, core, limits, request, word

# A character for each token: "1" is token 1.
PIECES = tuple(bytes([48 + token]) for token in range(VOCAB))
WORDS = Vocabulary(TokenTable(PIECES, (EOS,), (EOS,)))
A, B, C = "1", "2", "3"
LISTS = f'start: "{A}" ("{B}" | "{C}")* "{A}"'
HOT = SamplingParams(temperature=1.0, max_tokens=20)


@dataclass
class Run:
    """One request's deltas, and what came of it."""

    deltas: list[Delta] = field(default_factory=list)

    @property
    def tokens(self) -> list[int]:
        return [token for delta in self.deltas for token in delta.token_ids]

    @property
    def text(self) -> str:
        return "".join(delta.text for delta in self.deltas)

    @property
    def reason(self) -> str | None:
        return self.deltas[-1].finish_reason


def run(engine: EngineCore, all_params: list[SamplingParams], prompt: Any = (4, 5)) -> list[Run]:
    runs = [Run() for _ in all_params]
    for number, (params, one) in enumerate(zip(all_params, runs, strict=True)):
        length = len(prompt) + (params.max_tokens or 20)
        engine.add(request(f"{number}", prompt, params, one.deltas.append, length))
    while engine.requests:
        engine.step()
    return runs


def alone(params: SamplingParams, lark: str) -> Run:
    [one] = run(core(FakeModel()), [replace(params, grammar=WORDS.compile(lark))])
    return one


def listed(tokens: list[int]) -> bool:
    """Whether the tokens are what LISTS says, with an end."""
    return tokens[0] == tokens[-2] == 1 and tokens[-1] == EOS and set(tokens[1:-2]) <= {2, 3}


def test_answers_follow_their_grammars_and_others_are_left_alone() -> None:
    compiled = WORDS.compile(LISTS)
    plain = [replace(HOT, seed=seed) for seed in range(6)]
    bound = [replace(params, grammar=compiled) for params in plain]
    mixed = run(core(FakeModel()), [p for pair in zip(plain, bound, strict=True) for p in pair])
    assert [one.tokens for one in mixed[::2]] == [o.tokens for o in run(core(FakeModel()), plain)]
    ended = [one for one in mixed[1::2] if one.reason == "stop"]
    assert len(ended) > 2 and all(listed(one.tokens) for one in ended)
    assert all(set(one.tokens) <= {1, 2, 3, EOS} for one in mixed[1::2])


def test_the_end_comes_where_the_grammar_is_complete_and_not_before() -> None:
    one = alone(replace(HOT, temperature=0), f'start: "{A}{B}{C}"')
    assert one.tokens == [1, 2, 3, EOS] and one.reason == "stop"
    assert one.text == "".join(map(word, [1, 2, 3]))


def test_a_cut_off_answer_says_length_and_a_complete_one_does_not() -> None:
    cut = alone(replace(HOT, max_tokens=2), f'start: "{A}{B}{C}"')
    assert (cut.tokens, cut.reason) == ([1, 2], "length")
    whole = alone(replace(HOT, max_tokens=3), f'start: "{A}{B}{C}"')
    assert (whole.tokens, whole.reason) == ([1, 2, 3], "stop")


@pytest.mark.parametrize(
    "change",
    [
        {"ignore_eos": True},
        {"min_tokens": 10},
        {"stop_token_ids": (30,), "min_tokens": 10},
        {"logit_bias": {1: -100.0, 2: -100.0, 9: 100.0}},
        {"repetition_penalty": 9.0, "presence_penalty": 2.0},
        {"top_k": 1},
        {"top_p": 0.01},
        {"min_p": 1.0},
        {"logprobs": 3},
    ],
)
def test_nothing_overrides_a_grammar(change: dict[str, Any]) -> None:
    one = alone(replace(HOT, **change), f'start: "{A}{B}{C}"')
    assert one.tokens == [1, 2, 3, EOS] and one.reason == "stop"


@pytest.mark.parametrize("change", [{"ignore_eos": True}, {"min_tokens": 7}])
def test_the_end_is_held_back_while_there_is_something_else(change: dict[str, Any]) -> None:
    one = alone(replace(HOT, max_tokens=8, **change), f'start: ("{A}" | "{B}")+')
    assert EOS not in one.tokens[:7] and len(one.tokens) == 8
    early = [alone(replace(HOT, seed=s), f'start: ("{A}" | "{B}")+') for s in range(9)]
    assert any(len(one.tokens) < 8 for one in early)


def test_logprobs_are_the_models_own() -> None:
    params = replace(HOT, temperature=0, logprobs=VOCAB)
    one = alone(params, f'start: "{A}{B}"')
    for delta, token in zip(one.deltas, [1, 2, EOS], strict=True):
        [entry] = delta.logprobs
        assert dict(entry.top)[token] == entry.logprob and len(entry.top) == VOCAB
        assert sum(np.exp([logprob for _, logprob in entry.top])) == pytest.approx(1)


def test_stop_strings_still_end_an_answer() -> None:
    one = alone(replace(HOT, stop=(word(2),)), f'start: "{A}{B}{C}"')
    assert (one.text, one.reason, one.deltas[-1].stop_reason) == (word(1), "stop", word(2))
    one = alone(replace(HOT, stop_token_ids=(2,), min_tokens=5), f'start: "{A}{B}{C}"')
    assert (one.tokens, one.reason, one.deltas[-1].stop_reason) == ([1, 2], "stop", 2)


def test_preemption_does_not_lose_the_place() -> None:
    compiled = WORDS.compile(f'start: "{A}{B}{C}{B}{A}{C}{C}{B}"')
    params = [replace(HOT, grammar=compiled, seed=seed, max_tokens=9) for seed in range(3)]
    engine = core(FakeModel(), num_pages=7, page_size=2)
    runs = run(engine, params)
    assert engine.stats().preemptions > 0
    assert all(one.tokens == [1, 2, 3, 2, 1, 3, 3, 2, EOS] for one in runs)


@pytest.mark.parametrize("quality", [always, lambda value: value % 4 == 0])
def test_drafts_change_nothing(quality: Any) -> None:
    compiled = WORDS.compile(LISTS)
    params = [replace(HOT, grammar=compiled, seed=seed) for seed in range(6)]
    config = SpeculativeConfig(num_speculative_tokens=3)
    drafting = EngineCore(DraftingModel(quality), limits(), VOCAB, config)
    assert [o.tokens for o in run(drafting, params)] == [
        o.tokens for o in run(core(FakeModel()), params)
    ]


class FailingState(GrammarState):
    """Fails when it comes to its third token."""

    masks = 0

    def fill(self, words_W: Words) -> None:
        super().fill(words_W)
        self.masks += 1
        if self.masks == 3:
            self._fail("out of fuel")


class Failing(Grammar):
    def start(self) -> GrammarState:
        return FailingState(self.vocabulary, self._matcher.deep_copy())


def test_a_grammar_that_fails_ends_its_own_request_alone() -> None:
    compiled = WORDS.compile(LISTS)
    failing = Failing(WORDS, compiled._matcher, LISTS)
    engine = core(FakeModel())
    params = [replace(HOT, seed=seed, ignore_eos=True) for seed in range(3)]
    params[1] = replace(params[1], grammar=failing)
    first, broken, last = run(engine, params)
    assert broken.reason == "error" and len(broken.tokens) == 2
    assert broken.deltas[-1].error == grammar.TOO_COMPLEX
    assert first.reason == last.reason == "length" and engine.stats().failed_steps == 0
    assert engine.pool.num_used == 0


def test_the_librarys_error_state_is_not_taken_for_the_end() -> None:
    state = WORDS.compile(f'start: "{A}{B}"').start()
    state.append(9)
    assert state.failure == grammar.TOO_COMPLEX and "fails" in state.reason
    assert not state.complete


def test_a_mask_that_takes_too_long_is_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grammar, "_SLOW_S", -1.0)
    one = alone(HOT, LISTS)
    assert one.reason == "error" and one.tokens == []


def test_a_grammar_that_is_none_is_refused_with_words_for_a_client() -> None:
    for wrong in ("start: (", "start: missing", 'start: "a"{99999999999999}', "start: /(?=a)/"):
        with pytest.raises(GrammarError) as caught:
            WORDS.compile(wrong)
        assert str(caught.value) and str(caught.value) != caught.value.reason


def test_a_grammar_of_another_vocabulary_is_refused() -> None:
    other = Vocabulary(TokenTable(PIECES[:20], (EOS,), (EOS,))).compile(f'start: "{A}"')
    with (
        Engine(FakeModel(), fake_model.Words(), limits()) as engine,
        pytest.raises(UsageError) as caught,
    ):
        engine.submit([4], replace(HOT, grammar=other), print)
    assert "20 tokens" in str(caught.value) and "40" in str(caught.value)


def test_many_masks_at_once_are_those_of_each_alone() -> None:
    compiled = WORDS.compile(LISTS)
    states = [compiled.start() for _ in range(20)]
    for number, state in enumerate(states):
        for token in [1, 2, 3, 1, EOS][: number % 5]:
            state.append(token)
    together = np.zeros((20, WORDS.words), dtype=np.uint32)
    grammar.fill(states, together)
    for state, words_W in zip(states, together, strict=True):
        single = np.zeros(WORDS.words, dtype=np.uint32)
        state.fill(single)
        assert (single == words_W).all()


def test_bits_are_unpacked_in_order() -> None:
    words_RW = np.array([[0x80000001, 0x2], [0, 0xFFFFFFFF]], dtype=np.uint32)
    bits_RV = unpack(words_RW, 35, torch.device("cpu"))
    assert bits_RV.shape == (2, 35)
    assert [row.nonzero().flatten().tolist() for row in bits_RV] == [[0, 31, 33], [32, 33, 34]]


def test_text_is_spelled_by_the_longest_tokens() -> None:
    table = TokenTable((b"a", b"ab", b"abc", b"", b"c", b"<end>"), (5,), (5,))
    assert table.spell("abcabac") == [2, 1, 0, 4]
