"""What the engine refuses: one sentence with the field, the value and the rule."""

import math
from dataclasses import replace
from typing import Any

import pytest

from glm_portable.engine.admission import check_params, check_prompt, max_length
from glm_portable.engine.types import SamplingParams
from glm_portable.errors import UsageError

PARAMS = SamplingParams()


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("temperature", -0.1, "temperature is -0.1; it must be a finite number of at least 0."),
        ("temperature", math.inf, "temperature is inf"),
        ("temperature", math.nan, "temperature is nan"),
        ("top_p", 1.01, "top_p is 1.01; it must be from 0 to 1."),
        ("min_p", -1, "min_p is -1"),
        ("top_k", -1, "top_k is -1"),
        ("min_tokens", -1, "min_tokens is -1"),
        ("max_tokens", 0, "max_tokens is 0; it must be a finite number of at least 1."),
        ("repetition_penalty", 0, "repetition_penalty is 0; it must be above 0"),
        ("repetition_penalty", math.nan, "repetition_penalty is nan"),
        ("presence_penalty", math.inf, "presence_penalty is inf"),
        ("frequency_penalty", math.nan, "frequency_penalty is nan"),
        ("logprobs", -1, "logprobs is -1"),
        ("logprobs", 101, "logprobs is 101; it must be from 0 to 100."),
        ("stop", ("x", ""), "empty string"),
        ("logit_bias", {100: 1.0}, "token id 100, but the vocabulary has the ids 0 to 99"),
        ("logit_bias", {-1: 1.0}, "token id -1"),
        ("logit_bias", {3: math.inf}, "logit_bias of token 3 is inf; it must be a finite number."),
    ],
)
def test_a_parameter_without_meaning_is_refused(field: str, value: Any, message: str) -> None:
    with pytest.raises(UsageError) as refusal:
        check_params(replace(PARAMS, **{field: value}), vocab_size=100)
    assert message in str(refusal.value)


def test_min_tokens_above_max_tokens_is_refused() -> None:
    with pytest.raises(UsageError, match="max_tokens is 3; .* at least 5"):
        check_params(replace(PARAMS, max_tokens=3, min_tokens=5), vocab_size=100)


@pytest.mark.parametrize(
    "params",
    [
        PARAMS,
        SamplingParams(temperature=0, top_p=0, top_k=10**6, min_p=1, logprobs=100),
        SamplingParams(presence_penalty=-2, frequency_penalty=2, repetition_penalty=0.1),
        SamplingParams(max_tokens=5, min_tokens=5, logit_bias={0: -100, 99: 100}, seed=-1),
        SamplingParams(stop_token_ids=(5000,), stop=("\n",)),
    ],
)
def test_what_has_a_meaning_is_accepted(params: SamplingParams) -> None:
    check_params(params, vocab_size=100)


@pytest.mark.parametrize(
    ("prompt", "message"), [([], "empty"), ([3, 100], "id 100"), ([-1, 3], "id -1")]
)
def test_a_prompt_the_model_cannot_read_is_refused(prompt: list[int], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        check_prompt(prompt, vocab_size=100)


@pytest.mark.parametrize(
    ("prompt", "max_tokens", "expected"), [(9, 5, 10), (9, None, 10), (3, 5, 8), (3, 7, 10)]
)
def test_an_answer_ends_with_max_tokens_or_the_window(
    prompt: int, max_tokens: int | None, expected: int
) -> None:
    assert max_length([0] * prompt, replace(PARAMS, max_tokens=max_tokens), 10) == expected


@pytest.mark.parametrize("prompt", [10, 11, 5000])
def test_a_prompt_without_room_for_an_answer_is_refused(prompt: int) -> None:
    with pytest.raises(UsageError) as refusal:
        max_length([0] * prompt, PARAMS, 10)
    assert str(refusal.value).startswith(
        f"This model's maximum context length is 10 tokens. However, the prompt has {prompt} tokens"
    )
