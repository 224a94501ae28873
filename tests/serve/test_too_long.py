"""A text that cannot fit the window is refused before it is tokenised, however it is sent."""

from typing import Any

import httpx
import pytest

from glm_portable.serve import service
from tests.serve.conversation import HI
from tests.serve.fake_engine import TOKENIZER, WINDOW, Running

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
MESSAGES, RESPONSES = "/v1/messages", "/v1/responses"
TEXT = "word " * WINDOW * (TOKENIZER.longest or 0)
TALK = [{"role": "user", "content": TEXT}]
PATTERN = {"type": "string", "pattern": "a?" * len(TEXT)}
PARAMETERS = {"type": "object", "properties": {"a": PATTERN}}
FUNCTION = {"name": "f", "parameters": PARAMETERS, "strict": True}
ASKED: list[tuple[str, dict[str, Any]]] = [
    (CHAT, {"messages": TALK}),
    (CHAT, {"messages": HI * 4000}),
    (
        CHAT,
        {
            "messages": HI,
            "tools": [{"type": "function", "function": FUNCTION}],
            "tool_choice": "required",
        },
    ),
    (COMPLETIONS, {"prompt": TEXT}),
    (COMPLETIONS, {"prompt": [[5] * (2 * WINDOW + 1)]}),
    (MESSAGES, {"messages": TALK, "max_tokens": 9}),
    (
        MESSAGES,
        {"messages": HI, "max_tokens": 9, "tools": [{"name": "f", "input_schema": PARAMETERS}]},
    ),
    (RESPONSES, {"input": TEXT}),
    (RESPONSES, {"input": "Hi.", "tools": [{"type": "function", **FUNCTION}]}),
]
COUNTED = [
    ("/tokenize", "prompt", "count"),
    ("/tokenize", "messages", "count"),
    (f"{MESSAGES}/count_tokens", "messages", "input_tokens"),
]


class Unused:
    """In the place of the library's tokenizer: whoever calls it gets a 500."""


def shown(http: httpx.Client, path: str, field: str, text: str) -> httpx.Response:
    value = text if field == "prompt" else [{"role": "user", "content": text}]
    return http.post(path, json={field: value})


@pytest.mark.parametrize(("path", "asked"), ASKED)
def test_the_tokenizer_is_not_called(
    server: Running,
    http: httpx.Client,
    path: str,
    asked: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(TOKENIZER, "_tokenizer", Unused())
    response = http.post(path, json=asked)
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert f"This model's maximum context length is {WINDOW} tokens. However" in error["message"]
    assert "at least" in error["message"]
    assert path == MESSAGES or error["code"] == "context_length_exceeded"
    assert server.engine.requests == []


def test_the_engine_refuses_two_windows_by_their_number(
    server: Running, http: httpx.Client
) -> None:
    """So their client learns by how much they are too long."""
    for length, estimated in ((WINDOW, False), (2 * WINDOW, False), (2 * WINDOW + 1, True)):
        error = http.post(COMPLETIONS, json={"prompt": [5] * length}).json()["error"]
        assert error["code"] == "context_length_exceeded"
        assert ("at least" in error["message"]) == estimated


@pytest.mark.parametrize(("path", "field", "count"), COUNTED)
def test_a_text_of_many_windows_is_counted(
    http: httpx.Client, path: str, field: str, count: str
) -> None:
    more, less = (shown(http, path, field, text).json() for text in (TEXT, TEXT[:-5]))
    assert less[count] > 20 * WINDOW
    assert more[count] - less[count] == len(TOKENIZER.encode(" word"))


@pytest.mark.parametrize(("path", "field", "count"), COUNTED)
def test_a_text_that_is_not_counted_any_more(
    http: httpx.Client, path: str, field: str, count: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    most = shown(http, path, field, TEXT[:9000]).json()[count]
    monkeypatch.setattr(service, "COUNTED", most)
    assert shown(http, path, field, TEXT[:9000]).json()[count] == most
    response = shown(http, path, field, TEXT[:9500])
    assert response.status_code == 400
    message = response.json()["error"]["message"]
    assert f"lists or counts {most} at the most; send it in parts" in message


def test_a_conversation_ends_being_tokenised_where_it_is_too_long(
    http: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its bytes could be those of few tokens."""
    seen = []
    encode = type(TOKENIZER).encode

    def noting(self: Any, *arguments: Any) -> list[int]:
        seen.append(arguments[0])
        return encode(self, *arguments)

    monkeypatch.setattr(type(TOKENIZER), "encode", noting)
    asked = [{"role": "user", "content": str(i)} for i in range(2000)]
    response = http.post(CHAT, json={"messages": asked})
    assert response.json()["error"]["code"] == "context_length_exceeded"
    assert 100 < len(seen) < 1000
