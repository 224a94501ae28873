"""The fields of a request that say who goes first and with whom it shares cached pages."""

from typing import Any

import httpx
import pytest
from msgspec.structs import replace

from tests.serve.fake_engine import Running, says

CHAT: Any = ("/v1/chat/completions", {"messages": [{"role": "user", "content": "Hi."}]})
TEXT: Any = ("/v1/completions", {"prompt": ["Hi.", "Ho."]})
BOTH = pytest.mark.parametrize(("path", "body"), [CHAT, TEXT], ids=["chat", "completions"])


@BOTH
def test_priority_and_salt_reach_the_engine(
    server: Running, http: httpx.Client, path: str, body: Any
) -> None:
    fields = {"priority": -3, "cache_salt": "of this tenant", "n": 2}
    assert http.post(path, json=body | fields).status_code == 200
    asked = [(r.priority, r.cache_salt) for r in server.engine.requests]
    assert asked == [(-3, "of this tenant")] * len(asked) and len(asked) >= 2


@BOTH
@pytest.mark.parametrize("fields", [{}, {"priority": None, "cache_salt": None}])
def test_without_them_all_are_equal(
    server: Running, http: httpx.Client, path: str, body: Any, fields: Any
) -> None:
    assert http.post(path, json=body | fields).status_code == 200
    assert {(r.priority, r.cache_salt) for r in server.engine.requests} == {(0, "")}


@BOTH
@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("priority", "first"),
        ("priority", 0.5),
        ("priority", 2**31),
        ("cache_salt", ""),
        ("cache_salt", "x" * 1025),
        ("cache_salt", 7),
    ],
)
def test_what_they_cannot_be_is_refused_by_name(
    server: Running, http: httpx.Client, path: str, body: Any, field: str, value: Any
) -> None:
    answer = http.post(path, json=body | {field: value})
    assert answer.status_code == 400 and answer.json()["error"]["param"] == field
    assert server.engine.requests == []


def test_usage_tells_what_was_found_once_for_each_prompt(
    server: Running, http: httpx.Client
) -> None:
    def cached(request: Any) -> Any:
        first, *rest = says("Hello.")
        return [replace(first, num_cached_tokens=2), *rest]

    server.engine.script = cached
    usage = http.post(TEXT[0], json=TEXT[1] | {"n": 3}).json()["usage"]
    assert usage["prompt_tokens_details"] == {"cached_tokens": 4}
