"""Prompts and their times: exact lengths, and the same again from the same seed."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from glm_portable import pocket
from glm_portable.bench.serve.tokens import Bytes, Local
from glm_portable.bench.serve.workload import (
    RandomLengths,
    arrivals,
    random_prompts,
    sharegpt_prompts,
)
from glm_portable.errors import UsageError

LOCAL = Local(str(pocket.FOLDER))


def test_ids_have_the_length_asked_for() -> None:
    lengths = RandomLengths(input_len=20, output_len=10, range_ratio=0.5, prefix_len=7)
    prompts = random_prompts(200, lengths, Bytes(), 3, as_ids=True)
    assert {p.tokens for p in prompts} == set(range(17, 38))
    assert {p.max_tokens for p in prompts} == set(range(5, 16))
    assert all(len(p.content) == p.tokens for p in prompts)
    assert len({tuple(p.content[:7]) for p in prompts}) == 1
    assert len({tuple(p.content[7:17]) for p in prompts}) == 200
    again = random_prompts(200, lengths, Bytes(), 3, as_ids=True)
    assert prompts == again != random_prompts(200, lengths, Bytes(), 4, as_ids=True)


def test_text_is_cut_to_the_length_asked_for() -> None:
    prompts = random_prompts(20, RandomLengths(50, 1, 0.2), LOCAL, 1, as_ids=False)
    exact = 0
    for prompt in prompts:
        assert isinstance(prompt.content, str)
        assert len(LOCAL.encode(prompt.content)) == prompt.tokens  # what it says is what it is
        exact += 40 <= prompt.tokens <= 60
    assert exact == len(prompts)
    assert not any(i in LOCAL.ids for i in pocket_control_ids())


def pocket_control_ids() -> list[int]:
    return [LOCAL.encode.__self__.control_tokens["<|user|>"]]  # type: ignore[attr-defined]


def test_answers_are_never_empty() -> None:
    prompts = random_prompts(50, RandomLengths(1, 1, 0.9), Bytes(), 0, as_ids=True)
    assert {p.tokens for p in prompts} <= {1, 2} and min(p.max_tokens for p in prompts) == 1


def test_sharegpt_takes_first_turns_of_a_fitting_length(tmp_path: Path) -> None:
    def talk(asked: str, *answers: str) -> dict[str, object]:
        return {"conversations": [{"value": text} for text in (asked, *answers)]}

    path = tmp_path / "talks.json"
    good = "What is the weather in Paris today?"
    talks = [
        talk(good, "It is sunny and warm.", "Thanks"),
        talk("?", "Too short to be asked."),
        talk("Nobody answers this one."),
        talk("What does a long prompt do? " * 2000, "It is left out."),
        talk("And one whose answer is too short?", "1"),
    ]
    path.write_text(json.dumps(talks))
    [prompt] = set(sharegpt_prompts(path, 3, LOCAL, 0, None))
    assert prompt.content == good and prompt.tokens == len(LOCAL.encode(good))
    assert prompt.max_tokens == len(LOCAL.encode("It is sunny and warm."))
    assert {p.max_tokens for p in sharegpt_prompts(path, 9, LOCAL, 0, 77)} == {77}
    path.write_text("[]")
    with pytest.raises(UsageError, match="no conversation of a fitting length"):
        sharegpt_prompts(path, 3, LOCAL, 0, None)
    path.write_text('[{"messages": []}]')
    with pytest.raises(UsageError, match="no ShareGPT file"):
        sharegpt_prompts(path, 3, LOCAL, 0, None)


def test_arrivals_end_when_the_rate_says() -> None:
    assert list(arrivals(3, math.inf, 1, 0)) == [0, 0, 0]
    assert list(arrivals(4, 2.0, math.inf, 0)) == pytest.approx([0.5, 1.0, 1.5, 2.0])
    times = np.array(list(arrivals(4000, 10.0, 1.0, 5)))
    gaps = np.diff(times)
    assert times[-1] == pytest.approx(400) and (gaps > 0).all()
    assert gaps.std() / gaps.mean() == pytest.approx(1, abs=0.1)  # a Poisson process
    steady = np.diff(list(arrivals(4000, 10.0, 100.0, 5)))
    assert steady.std() / steady.mean() == pytest.approx(0.1, abs=0.02)
    assert list(arrivals(9, 3.0, 1.0, 1)) == list(arrivals(9, 3.0, 1.0, 1))


def test_wrong_lengths() -> None:
    with pytest.raises(UsageError, match="range-ratio 1.0"):
        RandomLengths(range_ratio=1.0)
    with pytest.raises(UsageError, match="at least 1"):
        RandomLengths(input_len=0)
    with pytest.raises(UsageError, match="--tokenizer"):
        random_prompts(1, RandomLengths(), Bytes(), 0, as_ids=False)
