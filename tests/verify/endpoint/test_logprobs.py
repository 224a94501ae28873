"""The ways in which servers tell log probabilities, and what is made of them."""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest

from glm_portable.verify.endpoint import logprobs, tools
from glm_portable.verify.endpoint.client import CHAT, COMPLETIONS, Client, Refused
from glm_portable.verify.endpoint.exam import Exam, Item, Settings, judge
from glm_portable.verify.endpoint.reference import Recorded, Reference
from glm_portable.verify.results import Check, Status

Give = Callable[[str, Mapping[str, Any]], dict[str, Any]]


class Told(Client):
    """A client whose server is a function."""

    def __init__(self, give: Give) -> None:
        super().__init__("http://told")
        self._give = give

    def post(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        return self._give(path, body)


def judged(give: Give, reference: Reference, look: Any = logprobs.compare) -> Check:
    exam = Exam(Told(give), "glm", None, reference, Settings())
    return judge(Item("g", "subject", "name", look), exam)


def record_of(reference: Reference, ids: Any) -> Recorded:
    return next(record for record in reference.recorded if list(record.ids) == list(ids))


def flatter(value: float, by: float) -> float:
    """A log probability of a distribution that is sure of less."""
    return math.log((1 - by) * math.exp(value) + by / 1000)


def vllm(reference: Reference, by: float) -> Give:
    def give(path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        assert path == COMPLETIONS and body["prompt_logprobs"] == 20
        record = record_of(reference, body["prompt"])
        rows: list[Any] = [None] * len(record.ids)
        for position in record.positions:
            rows[position.index] = {
                token: {"logprob": flatter(value, by), "rank": 1}
                for token, value in position.by_id.items()
            }
        return {"choices": [{"text": "x", "prompt_logprobs": rows}]}

    return give


def sglang(reference: Reference, by: float) -> Give:
    def give(path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        if not body.get("echo"):  # it does not know prompt_logprobs, and says nothing
            return {"choices": [{"text": "x"}]}
        record = record_of(reference, body["prompt"])
        rows: list[Any] = [None] * (len(record.ids) + 1)
        for position in record.positions:
            rows[position.index] = {t: flatter(v, by) for t, v in position.by_text.items()}
        return {"choices": [{"text": "x", "logprobs": {"top_logprobs": rows}}]}

    return give


def provider(reference: Reference, by: float) -> Give:
    """Chat alone."""

    def give(path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        if path == COMPLETIONS:
            raise Refused(404, "no such path")
        [record] = [r for r in reference.recorded if list(r.question.messages) == body["messages"]]
        known = {p.index - len(record.prompt_ids): p for p in record.positions}
        content = [
            {
                "token": piece,
                "logprob": -0.1,
                "top_logprobs": [
                    {"token": t, "logprob": flatter(v, by)}
                    for t, v in (known[i].by_text if i in known else {}).items()
                ],
            }
            for i, piece in enumerate(record.pieces)
        ]
        return {"choices": [{"message": {"content": "x"}, "logprobs": {"content": content}}]}

    return give


@pytest.mark.parametrize(
    "server, how", [(vllm, "prompt_logprobs"), (sglang, "echo"), (provider, "greedy chat")]
)
def test_each_way(server: Any, how: str, reference: Reference) -> None:
    same = judged(server(reference, 0.0), reference)
    assert same.status is Status.PASS and how in same.note, same
    assert same.measures["kl_max"] < 1e-6 and same.measures["same_top"] == 1
    other = judged(server(reference, 0.05), reference)
    assert other.status is Status.FAIL and "kl_mean" in str(other.findings)


def test_without_a_yardstick_only_gross_differences_fail(reference: Reference) -> None:
    bare = replace(reference, plain={})
    assert judged(vllm(reference, 0.01), bare).status is Status.PASS
    assert judged(vllm(reference, 0.3), bare).status is Status.FAIL


def test_other_names_for_tokens_are_not_compared(reference: Reference) -> None:
    def give(path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        found = sglang(reference, 0.0)(path, body)
        told = found["choices"][0].get("logprobs")
        if told:
            rows = told["top_logprobs"]
            told["top_logprobs"] = [
                r and {f"<0x{i}>": v for i, v in enumerate(r.values())} for r in rows
            ]
        return found

    check = judged(give, reference)
    assert check.status is Status.SKIPPED and "its names for tokens are others" in check.note


def test_no_log_probabilities_at_all(reference: Reference) -> None:
    def give(path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        return {"choices": [{"text": "x", "message": {"content": "x"}}]}

    check = judged(give, reference)
    assert check.status is Status.SKIPPED and "on neither endpoint" in check.note


@pytest.mark.parametrize("change, failed", [(str, False), (str.strip, True)])
def test_calls_beside_the_reference_where_there_are_no_completions(
    change: Callable[[str], str], failed: bool, reference: Reference
) -> None:
    """The reference's note has a space at its end."""

    def give(path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        if path != CHAT:
            raise Refused(404, "no such path")
        [record] = [r for r in reference.recorded if list(r.question.messages) == body["messages"]]
        calls = []
        for name, text in record.calls:
            values = {
                k: change(v) if isinstance(v, str) else v for k, v in json.loads(text).items()
            }
            function = {"name": name, "arguments": json.dumps(values)}
            calls.append({"id": name, "function": function})
        return {"choices": [{"message": {"tool_calls": calls}, "finish_reason": "tool_calls"}]}

    check = judged(give, reference, tools.as_written)
    assert (check.status is Status.FAIL) == failed and "compared with the reference" in check.note
