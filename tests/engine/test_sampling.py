"""Sampling: each filter against its definition, draws against their distribution."""

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from glm_portable.engine import drawing, sampling
from glm_portable.engine.drawing import Filters, uniform
from glm_portable.engine.sampling import RowSampler, Sampled, Sampler
from glm_portable.engine.types import SamplingParams

VOCAB = 12
STOP_IDS = [0, 5]
LOGITS = st.lists(st.integers(-40, 40).map(lambda n: n / 8), min_size=VOCAB, max_size=VOCAB)


def row(
    params: SamplingParams,
    seed: int = 0,
    prompt: Sequence[int] = (),
    output: Sequence[int] = (),
    stop_ids: Sequence[int] = (),
) -> RowSampler:
    made = RowSampler(params, seed, stop_ids, prompt)
    for token in output:
        made.append(token)
    return made


def sample(logits: Tensor, rows: Sequence[RowSampler], vocab_size: int) -> list[Sampled]:
    return Sampler(vocab_size).sample(logits, rows)


def pick(logits: Tensor, made: RowSampler) -> Sampled:
    return sample(logits[None], [made], logits.shape[0])[0]


def by_definition(
    logits: Sequence[float],
    p: SamplingParams,
    prompt: Sequence[int] = (),
    output: Sequence[int] = (),
) -> Tensor:
    """The distribution to draw from, token by token in float64 and in vLLM's order."""
    x = np.array(logits, dtype=np.float64)
    for token, bias in p.logit_bias.items():
        x[token] += bias
    if len(output) < p.min_tokens:
        x[STOP_IDS] = -np.inf
    for token in set(prompt) | set(output):
        x[token] *= 1 / p.repetition_penalty if x[token] > 0 else p.repetition_penalty
    for token, count in Counter(output).items():
        x[token] -= p.frequency_penalty * count + p.presence_penalty
    x = np.exp((x - x.max()) / p.temperature)
    x[x < p.min_p * x.max()] = 0
    if p.top_k:
        x[x < np.sort(x)[::-1][min(p.top_k, VOCAB) - 1]] = 0
    x /= x.sum()
    mass, kept = 0.0, 0.0
    for value in np.sort(x)[::-1]:
        if p.top_p < 1 and kept and mass >= p.top_p:
            break
        mass, kept = mass + value, value
    x[x < kept] = 0
    return torch.from_numpy(x / x.sum())


# All numbers that change logits are exact in binary: tokens that tie in float64 tie in float32.
PARAMS = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0.25, 1.0, 2.0]),
    top_p=st.sampled_from([0.0, 0.13, 0.51, 0.93, 1.0]),
    top_k=st.sampled_from([0, 1, 3, VOCAB, 99]),
    min_p=st.sampled_from([0.0, 0.07, 0.6, 1.0]),
    repetition_penalty=st.sampled_from([1.0, 0.5, 2.0]),
    presence_penalty=st.sampled_from([0.0, -1.125, 0.875]),
    frequency_penalty=st.sampled_from([0.0, -0.375, 0.75]),
    logit_bias=st.dictionaries(st.integers(0, VOCAB - 1), st.sampled_from([-100.0, 1.25, 3.0])),
    min_tokens=st.sampled_from([0, 3]),
)
TOKENS = st.lists(st.integers(0, VOCAB - 1), max_size=6)


@given(LOGITS, PARAMS, TOKENS, TOKENS)
@settings(max_examples=300, deadline=None)
def test_the_distribution_is_that_of_the_definitions(
    logits: list[float], params: SamplingParams, prompt: list[int], output: list[int]
) -> None:
    """A draw inverts the cumulative sum, so an even grid of points measures the distribution."""
    made = row(params, 0, prompt, output, STOP_IDS)
    expected = by_definition(logits, params, prompt, output)
    grid = 512
    choices = torch.tensor([logits])
    sampling.adjust(choices, [made])
    points = (torch.arange(grid) + 0.5)[:, None] / grid
    filters = Filters([params] * grid, VOCAB, choices.device)
    tokens = filters.draw(choices.repeat(grid, 1), points)
    measured = torch.bincount(tokens, minlength=VOCAB) / grid
    assert (measured - expected).abs().max() < 1.01 / grid
    assert ((measured > 0) <= (expected > 0)).all()


def chi_square(counts: Tensor, expected: Tensor) -> float:
    used = expected > 0
    assert not counts[~used].any()
    return float(((counts - expected)[used] ** 2 / expected[used]).sum())


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(),
        SamplingParams(temperature=0.5),
        SamplingParams(temperature=1.5, top_k=6, top_p=0.9, min_p=0.05),
    ],
    ids=["plain", "cold", "filtered"],
)
@pytest.mark.parametrize("along", ["seeds", "positions"])
def test_draws_follow_the_distribution(params: SamplingParams, along: str) -> None:
    """Over seeds at one position, and over the positions of one seed: fixed, so never flaky."""
    draws = 6000
    logits = torch.linspace(-1.5, 1.5, VOCAB)[torch.randperm(VOCAB)]
    rows = [row(params, seed=n if along == "seeds" else 17) for n in range(draws)]
    for n, made in enumerate(rows):
        made.num_generated = n if along == "positions" else 3
    tokens = [s.token_id or 0 for s in sample(logits.repeat(draws, 1), rows, VOCAB)]
    counts = torch.bincount(torch.tensor(tokens), minlength=VOCAB).double()
    expected = by_definition(logits.tolist(), params) * draws
    # 11 degrees of freedom at most: chi-square exceeds 31 once in a thousand.
    assert chi_square(counts, expected) < 31.3


def test_consecutive_draws_are_independent() -> None:
    """Pairs of neighbouring positions, and of neighbouring seeds, in a 4 x 4 table."""
    for step in [(0, 1), (1, 0)]:
        seeds = range(0, 16000, 2)
        first = uniform((seed, 50) for seed in seeds)
        pairs = [*zip(first, uniform((n + step[0], 50 + step[1]) for n in seeds), strict=True)]
        cells = torch.tensor([int(a * 4) * 4 + int(b * 4) for a, b in pairs])
        counts = torch.bincount(cells, minlength=16).double()
        assert chi_square(counts, torch.full((16,), len(pairs) / 16)) < 37.7


@pytest.mark.parametrize(("point", "expected"), [(0.0, 1), (0.5, 2), (1 - 2**-23, 2)])
def test_a_draw_never_hits_a_token_without_probability(point: float, expected: int) -> None:
    """Not even at the ends of the range, or where two tokens meet."""
    logits = torch.tensor([[-math.inf, 0.0, 0.0, -math.inf]])
    filters = Filters([SamplingParams()], 4, logits.device)
    assert filters.draw(logits, torch.tensor([[point]])).tolist() == [expected]


def test_uniform_is_below_one_and_takes_any_integer_as_seed() -> None:
    seeds = (-(2**63), -1, 0, 5, 2**64 + 9)
    values = uniform((seed, n) for seed in seeds for n in range(200))
    assert all(0 <= value < 1 for value in values)
    assert len(set(values)) > 990


@given(st.lists(PARAMS, min_size=2, max_size=6), st.integers(0, 2**32), st.randoms())
@settings(max_examples=100, deadline=None)
def test_a_row_does_not_depend_on_its_neighbours(
    params: list[SamplingParams], seed: int, random: object
) -> None:
    """Nor on its place, with greedy rows and rows with logprobs among them."""
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(len(params), VOCAB, generator=generator)
    mixed = [
        SamplingParams(**(vars(p) | {"temperature": p.temperature * (n % 3 > 0), "logprobs": n}))
        for n, p in enumerate(params)
    ]

    def rows() -> list[RowSampler]:
        return [row(p, seed=n, prompt=[n], output=[3, 3]) for n, p in enumerate(mixed)]

    together = sample(logits, rows(), VOCAB)
    back = list(reversed(range(len(params))))
    assert [sample(logits[n : n + 1], [rows()[n]], VOCAB)[0] for n in back] == together[::-1]
    assert sample(logits[back], [rows()[n] for n in back], VOCAB) == together[::-1]


def test_bias_and_penalties_of_several_rows_by_hand() -> None:
    """A row has what is its own, a token counts as often as it was written."""
    penalties = SamplingParams(
        repetition_penalty=2.0, frequency_penalty=0.5, presence_penalty=0.25, logit_bias={0: 7.0}
    )
    rows = [
        row(penalties, prompt=[1], output=[3, 3, 5]),
        row(SamplingParams(), prompt=[1], output=[3]),
        row(SamplingParams(frequency_penalty=-1.0, min_tokens=3), output=[2, 2], stop_ids=[4]),
    ]
    logits = torch.ones(3, 6)
    sampling.adjust(logits, rows)
    assert logits.tolist() == [
        [8.0, 0.5, 1.0, -0.75, 1.0, -0.25],
        [1.0] * 6,
        [1.0, 1.0, 3.0, 1.0, -math.inf, 1.0],
    ]


@given(st.lists(st.lists(PARAMS, min_size=1, max_size=3), min_size=2, max_size=4))
@settings(max_examples=50, deadline=None)
def test_a_step_does_not_depend_on_the_steps_before(steps: list[list[SamplingParams]]) -> None:
    """What is kept for the next step is that of the same requests in the same order, or nothing."""
    sampler = Sampler(VOCAB)
    logits = torch.linspace(-1.5, 1.5, VOCAB).repeat(3, 1)
    for params in [*steps, *steps[:1], steps[0][::-1], *steps]:
        rows = [row(p, seed=n, prompt=[n]) for n, p in enumerate(params)]
        found = sampler.sample(logits[: len(rows)], rows)
        assert found == sample(logits[: len(rows)], rows, VOCAB)


@pytest.mark.parametrize("top_p", [0.02, 0.5, 0.97, 0.9999])
def test_top_p_over_more_tokens_than_candidates(top_p: float) -> None:
    """Against a sort of the whole row: one that needs few tokens and one that needs many."""
    size = 20 * drawing._CANDIDATES
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(2, size, generator=generator) * torch.tensor([[9.0], [0.5]])
    probs = logits.softmax(-1)
    ordered = probs.double().sort(descending=True)
    before = ordered.values.cumsum(-1) - ordered.values
    expected = torch.zeros(2, size, dtype=torch.bool).scatter_(1, ordered.indices, before < top_p)
    drawing.keep_top_p(probs, torch.tensor([[top_p], [top_p]]))
    # Of the flat row's 5,000 tokens the rounding of a sum may keep one more or less.
    assert ((probs > 0) != expected).sum(-1).tolist()[0] == 0
    assert ((probs > 0) != expected).sum() <= 1
    assert int((probs[1] > 0).sum()) > drawing._CANDIDATES or top_p < 0.1


@pytest.mark.parametrize("temperature", [0.0, 1.0, 1e-30, 1e30])
def test_tokens_the_tokenizer_does_not_have_are_never_chosen(temperature: float) -> None:
    logits = torch.zeros(200, VOCAB + 4)
    logits[:, VOCAB:] = 50
    params = SamplingParams(temperature=temperature, logprobs=3)
    results = sample(logits, [row(params, seed=n) for n in range(200)], VOCAB)
    for result in results:
        assert result.token_id is not None and result.token_id < VOCAB
        assert result.logprob is not None
        assert all(token < VOCAB for token, _ in result.logprob.top)
        # The model's own distribution, which does have the rows without a token.
        assert result.logprob.logprob == pytest.approx(-50 - math.log(4), abs=1e-4)


def test_logprobs_are_of_the_model_and_equal_to_the_bit() -> None:
    """Before bias, penalties and temperature; the chosen token's float is the one in `top`."""
    logits = torch.randn(5, VOCAB, generator=torch.Generator().manual_seed(1))
    unlikely = int(logits[4].argmin())
    bias = {unlikely: 100.0}
    wanted = [None, 0, 2, VOCAB, 3]
    rows = [row(SamplingParams(temperature=0, logprobs=n)) for n in wanted[:4]]
    rows.append(row(SamplingParams(temperature=0, logprobs=3, logit_bias=bias)))
    results = sample(logits, rows, VOCAB)
    raw = logits.log_softmax(-1)
    assert results[0].logprob is None
    for n, (result, count) in enumerate(zip(results, wanted, strict=True)):
        if count is None:
            continue
        entry = result.logprob
        assert entry is not None and entry.token_id == result.token_id
        assert entry.logprob == raw[n, entry.token_id].item()
        assert len(entry.top) == count
        assert [value for _, value in entry.top] == raw[n].sort(descending=True)[0].tolist()[:count]
        if n != 4 and count:
            assert entry.top[0] == (result.token_id, entry.logprob)
    assert results[4].token_id == unlikely
    assert results[4].logprob is not None
    assert unlikely not in dict(results[4].logprob.top)


def test_stop_tokens_wait_for_min_tokens() -> None:
    logits = torch.arange(VOCAB).float()
    made = row(SamplingParams(temperature=0, min_tokens=2), stop_ids=[VOCAB - 1, 3])
    chosen = []
    for _ in range(3):
        token = pick(logits, made).token_id
        assert token is not None
        made.append(token)
        chosen.append(token)
    assert chosen == [VOCAB - 2, VOCAB - 2, VOCAB - 1]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_row_without_finite_logits_has_no_token(value: float, temperature: float) -> None:
    """And its neighbours have theirs."""
    params = SamplingParams(temperature=temperature, logprobs=2, top_p=0.9)
    logits = torch.zeros(3, VOCAB)
    logits[1, slice(None) if value < 0 else slice(4, 5)] = value
    results = sample(logits, [row(params, seed=n) for n in range(3)], VOCAB)
    assert [result.token_id is None for result in results] == [False, True, False]


def test_the_models_logits_are_left_alone() -> None:
    logits = torch.ones(1, VOCAB)
    pick(logits[0], row(SamplingParams(logit_bias={3: 5.0}, frequency_penalty=1), output=[1]))
    assert torch.equal(logits, torch.ones(1, VOCAB))
