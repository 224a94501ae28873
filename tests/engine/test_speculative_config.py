"""The ways to ask for drafts, and what is refused with one sentence."""

from typing import Any

import pytest

from glm_portable.engine.speculative import SpeculativeConfig, from_options
from glm_portable.errors import UsageError


def options(
    config: Any = None,
    *,
    method: str | None = None,
    count: int | None = None,
    algorithm: str | None = None,
    steps: int | None = None,
    topk: int | None = None,
    tokens: int | None = None,
) -> SpeculativeConfig | None:
    fields = {"method": method, "num_speculative_tokens": count}
    return from_options(config, fields, algorithm, steps, topk, tokens)


@pytest.mark.parametrize(
    "given, count",
    [
        ({"config": '{"method": "mtp", "num_speculative_tokens": 5}'}, 5),
        ({"config": {"method": "glm4_moe_mtp", "num_speculative_tokens": 2}}, 2),
        ({"config": '{"method": "mtp"}'}, 1),
        ({"config": '{"method": "mtp"}', "count": 4}, 4),
        ({"method": "mtp", "count": 1}, 1),
        ({"count": 3}, 3),
        ({"algorithm": "EAGLE", "steps": 3, "topk": 1, "tokens": 4}, 3),
        ({"algorithm": "nextn", "tokens": 2}, 1),
        ({"algorithm": "NEXTN"}, 3),
    ],
)
def test_each_way_to_say_it(given: dict[str, Any], count: int) -> None:
    assert options(**given) == SpeculativeConfig(count)


def test_nothing_is_drafted_unless_asked_for() -> None:
    assert options() is None


def test_the_chain_can_be_chosen() -> None:
    assert options('{"num_speculative_tokens": 2, "chain": "normed"}') == SpeculativeConfig(
        2, "normed"
    )


@pytest.mark.parametrize(
    "given, sentence",
    [
        ({"config": "mtp"}, "'mtp' is no JSON object; write it as "),
        ({"config": "[1]"}, "is no JSON object"),
        ({"config": '{"method": "ngram"}'}, "method 'ngram' is not supported: use mtp"),
        ({"config": '{"model": "x"}'}, "'model' is no field of the speculative config; it has"),
        ({"count": 0}, "num_speculative_tokens is 0; it must be from 1 to 5"),
        ({"config": '{"num_speculative_tokens": 6}'}, "is 6; it must be from 1 to 5"),
        ({"config": '{"num_speculative_tokens": "2"}'}, "is '2'; it must be from 1 to 5"),
        ({"config": '{"num_speculative_tokens": true}'}, "is True; it must be from 1 to 5"),
        ({"config": '{"chain": "other"}'}, "chain is 'other'; it must be normed or residual"),
        ({"algorithm": "EAGLE3"}, "--speculative-algorithm is EAGLE3; it must be EAGLE or NEXTN"),
        ({"steps": 3}, "--speculative-algorithm is not given; it must be"),
        ({"algorithm": "EAGLE", "topk": 4}, "--speculative-eagle-topk is 4; only 1 is supported"),
        ({"algorithm": "EAGLE", "steps": 6}, "--speculative-num-steps is 6; it must be from 1"),
        ({"algorithm": "EAGLE", "steps": 3, "tokens": 8}, "tokens is 8; it must be 4: the 3 of"),
        ({"algorithm": "EAGLE", "count": 1}, "say the same in two ways: give one"),
    ],
)
def test_what_is_refused(given: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UsageError) as error:
        options(**given)
    assert sentence in str(error.value)
