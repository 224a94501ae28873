"""Input items to chat messages."""

from typing import Any

import pytest

from glm_portable.errors import UsageError
from glm_portable.serve.messages import normalize_messages
from glm_portable.serve.responses.history import chat_messages

CALL = {"type": "function_call", "id": "fc", "call_id": "a", "name": "f", "arguments": '{"x": 1}'}
CALLED = {"id": "a", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}


def reasoning(**fields: Any) -> dict[str, Any]:
    parts = {name: [{"type": f"{name}_text", "text": text}] for name, text in fields.items()}
    content = parts.pop("reasoning", None)
    return {"type": "reasoning", "id": "rs", "summary": [], "content": content, **parts}


def output(text: str) -> dict[str, Any]:
    part = {"type": "output_text", "text": text, "annotations": []}
    return {"type": "message", "role": "assistant", "content": [part], "status": "completed"}


def test_a_text_is_a_message_of_the_user() -> None:
    assert chat_messages("Be brief.", "Hi.") == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi."},
    ]
    assert chat_messages(None, "Hi.") == [{"role": "user", "content": "Hi."}]


def test_the_items_of_a_turn_are_one_message() -> None:
    result = {"type": "function_call_output", "call_id": "a", "output": "1"}
    parts = [{"type": "input_text", "text": "2"}, {"type": "input_text", "text": "3"}]
    found = chat_messages(
        None,
        [
            {"role": "developer", "content": "Rules."},
            {"role": "user", "content": [{"type": "input_text", "text": "Hi."}]},
            reasoning(reasoning="Hm."),
            output("Wait."),
            CALL,
            {**CALL, "call_id": "b"},
            result,
            {**result, "call_id": "b", "output": parts},
            reasoning(summary="So."),
            output("Done."),
            {"role": "user", "content": "Thanks."},
        ],
    )
    assert found == [
        {"role": "developer", "content": "Rules."},
        {"role": "user", "content": "Hi."},
        {
            "role": "assistant",
            "content": "Wait.",
            "reasoning_content": "Hm.",
            "tool_calls": [CALLED, {**CALLED, "id": "b"}],
        },
        {"role": "tool", "tool_call_id": "a", "content": "1"},
        {"role": "tool", "tool_call_id": "b", "content": "23"},
        {"role": "assistant", "content": "Done.", "reasoning_content": "So."},
        {"role": "user", "content": "Thanks."},
    ]
    assert len(normalize_messages(found)) == len(found)


def test_text_after_a_call_belongs_to_the_same_turn() -> None:
    [message] = chat_messages(None, [output("One "), CALL, output("two")])
    assert message == {"role": "assistant", "content": "One two", "tool_calls": [CALLED]}


def test_two_texts_are_two_messages() -> None:
    found = chat_messages(None, [output("One"), output("two")])
    assert [message["content"] for message in found] == ["One", "two"]


def test_the_thinking_counts_more_than_its_summary() -> None:
    item = reasoning(reasoning="All of it.", summary="Short.") | {"encrypted_content": "xyz"}
    [message] = chat_messages(None, [item, output("Hi.")])
    assert message["reasoning_content"] == "All of it."


def test_thinking_that_nobody_can_read_is_still_a_turn() -> None:
    hidden: dict[str, Any] = {
        "type": "reasoning",
        "summary": [],
        "content": None,
        "encrypted_content": "xyz",
    }
    assert chat_messages(None, [hidden]) == [{"role": "assistant", "content": ""}]
    assert chat_messages(None, [hidden, CALL]) == chat_messages(None, [CALL])


@pytest.mark.parametrize(
    ("item", "words"),
    [
        ("x", "input[0] must be an object"),
        ({"type": "computer_call"}, "input[0] is of type 'computer_call'"),
        ({"role": "tool", "content": "x"}, "input[0].role is 'tool'"),
        ({"role": "user"}, "input[0].content must be a string or a list"),
        ({"type": "function_call_output"}, "input[0].output must be a string or a list"),
        ({"role": "user", "content": 5}, "input[0].content must be a string or a list"),
        ({"role": "user", "content": ["x"]}, "input[0].content[0] must be an object"),
        ({"role": "user", "content": [{"type": "input_text"}]}, "content[0].text must be a string"),
        ({**CALL, "arguments": {}}, "must have a name and arguments"),
        (
            {"type": "function_call_output", "output": [{"type": "input_file"}]},
            "input[0].output[0] is of type 'input_file'",
        ),
    ],
)
def test_what_cannot_be_used_is_named(item: Any, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        chat_messages(None, [item])
    assert words in str(caught.value)
