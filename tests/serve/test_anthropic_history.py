"""Content blocks to chat messages."""

from typing import Any

import pytest

from glm_portable.errors import UsageError
from glm_portable.serve.anthropic.history import chat_messages
from glm_portable.serve.messages import normalize_messages


def text(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text, "cache_control": {"type": "ephemeral"}}


def result(call_id: str, content: Any) -> dict[str, Any]:
    return {"type": "tool_result", "tool_use_id": call_id, "content": content, "is_error": False}


CALL = {"type": "tool_use", "id": "a", "name": "f", "input": {"x": [1]}}


def test_a_conversation_with_tools() -> None:
    found = chat_messages(
        [text("Be brief."), text("Be kind.")],
        [
            {"role": "user", "content": [text("Hel"), text("lo")]},
            {
                "role": "assistant",
                "content": [
                    {"type": "thinking", "thinking": "Hm.", "signature": "abc"},
                    {"type": "redacted_thinking", "data": "xyz"},
                    text("Wait."),
                    CALL,
                    {**CALL, "id": "b", "input": {}},
                ],
            },
            {"role": "user", "content": [result("a", "1"), result("b", [text("2")]), text("Go.")]},
            {"role": "assistant", "content": "Done."},
            {"role": "system", "content": "New rules."},
        ],
    )
    calls = [
        {"id": name, "type": "function", "function": {"name": "f", "arguments": arguments}}
        for name, arguments in (("a", {"x": [1]}), ("b", {}))
    ]
    assert found == [
        {"role": "system", "content": "Be brief.\nBe kind."},
        {"role": "user", "content": "Hello"},
        {
            "role": "assistant",
            "content": "Wait.",
            "reasoning_content": "Hm.",
            "tool_calls": calls,
        },
        {"role": "tool", "tool_call_id": "a", "content": "1"},
        {"role": "tool", "tool_call_id": "b", "content": "2"},
        {"role": "user", "content": "Go."},
        {"role": "assistant", "content": "Done."},
        {"role": "system", "content": "New rules."},
    ]
    assert len(normalize_messages(found)) == len(found)


@pytest.mark.parametrize("content", ["", [], [text("")]])
def test_messages_without_text(content: Any) -> None:
    assert chat_messages(None, [{"role": "user", "content": content}]) == [
        {"role": "user", "content": ""}
    ]
    assert chat_messages(content, []) == chat_messages(None, []) == []


def test_a_result_without_content() -> None:
    block = {"type": "tool_result", "tool_use_id": "a"}
    found = chat_messages("", [{"role": "user", "content": [block]}])
    assert found == [{"role": "tool", "tool_call_id": "a", "content": ""}]


def test_text_before_a_result_stays_before_it() -> None:
    blocks = [text("First."), result("a", "1")]
    found = chat_messages("", [{"role": "user", "content": blocks}])
    assert [message["role"] for message in found] == ["user", "tool"]


@pytest.mark.parametrize("as_blocks", [False, True])
def test_the_billing_line_does_not_reach_the_prompt(as_blocks: bool) -> None:
    """Its hash differs in every request, so no prefix would be found in the cache again."""
    line, rest = "x-anthropic-billing-header: cc_version=2.1; cch=eb6c6;", "You are kind."
    system = [text(line), text(rest)] if as_blocks else f"{line}\n{rest}"
    assert chat_messages(system, [])[0]["content"] == rest


@pytest.mark.parametrize(
    ("message", "words"),
    [
        ("x", "messages[0] must be an object"),
        ({"role": "dog"}, "messages[0].role is 'dog'"),
        ({"role": {}, "content": ""}, "messages[0].role is {}"),
        ({"role": "user"}, "messages[0].content must be a string or a list"),
        ({"role": "user", "content": None}, "messages[0].content must be a string or a list"),
        ({"role": "user", "content": 5}, "messages[0].content must be a string or a list"),
        (
            {"role": "user", "content": ["x"]},
            "messages[0].content[0] must be an object with a type",
        ),
        ({"role": "user", "content": [{"type": "text"}]}, "messages[0].content[0].text must be"),
        ({"role": "user", "content": [{"type": "image"}]}, "'image', but this model reads text"),
        ({"role": "user", "content": [CALL]}, "'tool_use'"),
        ({"role": "assistant", "content": [result("a", "1")]}, "'tool_result'"),
        ({"role": "assistant", "content": [{**CALL, "input": "{}"}]}, "must have a name"),
        (
            {"role": "user", "content": [result("a", [{"type": "image"}])]},
            "messages[0].content[0].content[0] is of type 'image'",
        ),
    ],
)
def test_what_cannot_be_used_is_named(message: Any, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        chat_messages(None, [message])
    assert words in str(caught.value)
