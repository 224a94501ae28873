from typing import Any

import pytest

from glm_portable.errors import UsageError
from glm_portable.serve.messages import normalize_messages, normalize_tools


def one(**message: Any) -> dict[str, Any]:
    return normalize_messages([message])[0]


def called(**function: Any) -> Any:
    """The arguments that an assistant message's single call is normalised to."""
    message = one(role="assistant", content=None, tool_calls=[{"id": "x", "function": function}])
    return message["tool_calls"][0]["function"]["arguments"]


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (None, ""),
        ("", ""),
        ("a", "a"),
        ([], ""),
        (["a", "b"], "ab"),
        ([{"type": "text", "text": "a"}, {"type": "input_text", "text": "b"}], "ab"),
        ([{"type": "output_text", "text": "a"}, {"type": "refusal", "refusal": "no"}], "ano"),
    ],
)
@pytest.mark.parametrize("role", ["system", "user", "assistant", "tool"])
def test_content_becomes_one_string(role: str, content: Any, text: str) -> None:
    assert one(role=role, content=content) == {"role": role, "content": text}


def test_content_may_be_absent() -> None:
    assert one(role="assistant") == {"role": "assistant", "content": ""}


def test_the_developer_role_is_the_system_role() -> None:
    assert one(role="developer", content="a") == {"role": "system", "content": "a"}


def test_several_outputs_of_a_tool_stay_apart() -> None:
    outputs = [{"output": "a"}, {"output": {"t": "½"}}]
    expected = [{"output": "a"}, {"output": '{"t": "½"}'}]
    assert one(role="tool", content=outputs)["content"] == expected


def test_a_whole_answer_object_comes_back() -> None:
    answer: dict[str, Any] = {
        "role": "assistant", "content": "a", "refusal": None, "annotations": [], "audio": None,
        "function_call": None, "tool_calls": None, "reasoning_content": "r", "name": "n",
    }  # fmt: skip
    assert one(**answer) == {"role": "assistant", "content": "a", "reasoning_content": "r"}


@pytest.mark.parametrize(
    ("fields", "reasoning"),
    [
        ({"reasoning": "r"}, "r"),
        ({"reasoning_content": "c", "reasoning": "r"}, "c"),
        ({"reasoning_content": None, "reasoning": "r"}, "r"),
        ({"reasoning_content": None}, None),
        ({"reasoning": {"effort": "low"}}, None),
    ],
)
def test_reasoning_has_two_names(fields: dict[str, Any], reasoning: str | None) -> None:
    message = one(role="assistant", content="a", **fields)
    assert message.get("reasoning_content") == reasoning
    assert "reasoning" not in message


def test_a_tool_call_id_need_not_match_anything() -> None:
    assert one(role="tool", content="a", tool_call_id="call_of_nobody")["content"] == "a"


@pytest.mark.parametrize(
    ("arguments", "value"),
    [
        ('{"a": 1}', {"a": 1}),
        ({"a": 1}, {"a": 1}),
        ("", {}),
        (" ", {}),
        (None, {}),
        ("null", {}),
        ('{"a": {"b": [null]}}', {"a": {"b": [None]}}),
    ],
)
def test_arguments_become_an_object(arguments: Any, value: Any) -> None:
    assert called(name="f", arguments=arguments) == value


def test_a_call_may_be_flat() -> None:
    message = one(role="assistant", tool_calls=[{"name": "f", "arguments": {"a": 1}}])
    assert message["tool_calls"] == [
        {"type": "function", "function": {"name": "f", "arguments": {"a": 1}}}
    ]


@pytest.mark.parametrize("arguments", ["{", "{'a': 1}", "[" * 100_000, '{"a": ' + "1" * 5000 + "}"])
def test_arguments_that_are_no_json_name_the_call(arguments: str) -> None:
    with pytest.raises(UsageError, match=r"messages\[0\]\.tool_calls\[0\] \(f\).*not valid JSON"):
        called(name="f", arguments=arguments)


@pytest.mark.parametrize("arguments", ["[1]", '"a"', "5", [1], 0, False])
def test_arguments_that_are_no_object_name_the_call(arguments: Any) -> None:
    with pytest.raises(UsageError, match=r"tool_calls\[0\] \(f\).*must be a JSON object"):
        called(name="f", arguments=arguments)


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], "at least one message"),
        (None, "must be a list"),
        ("Hello", "must be a list"),
        ({"role": "user"}, "must be a list"),
        (["Hello"], r"messages\[0\] must be an object"),
        ([{"content": "a"}], r"messages\[0\]\.role is None; use one of system, user"),
        ([{"role": "function", "content": "a"}], r"messages\[0\]\.role is 'function'"),
        ([{"role": ["user"], "content": "a"}], r"messages\[0\]\.role is \['user'\]"),
        ([{"role": "user", "content": "a"}, {"role": "user", "content": 5}], r"\[1\]\.content"),
        ([{"role": "user", "content": {"type": "text"}}], r"messages\[0\]\.content must be"),
        ([{"role": "user", "content": ["a", 5]}], r"messages\[0\]\.content\[1\] must be an object"),
        ([{"role": "user", "content": [{"text": "a"}]}], r"\[0\] must be an object with"),
        ([{"role": "user", "content": [{"type": ["text"]}]}], r"content\[0\] must be an object"),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}],
         r"messages\[0\]\.content\[0\] is of type 'image_url', but this model reads text only"),
        ([{"role": "user", "content": [{"type": "input_audio"}]}], "'input_audio', but this model"),
        ([{"role": "user", "content": [{"type": "text", "text": None}]}], r"\.text must be a str"),
        ([{"role": "assistant", "tool_calls": {"name": "f"}}], r"tool_calls must be a list"),
        ([{"role": "user", "tool_calls": {}}], r"tool_calls must be a list"),
        ([{"role": "user", "reasoning_content": 5}], r"reasoning_content must be a string"),
        ([{"role": "assistant", "tool_calls": ["f"]}], r"tool_calls\[0\] must be an object"),
        ([{"role": "assistant", "tool_calls": [{"function": {}}]}], r"\[0\] must be an object"),
    ],
)  # fmt: skip
def test_messages_that_cannot_be_used_are_named(messages: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        normalize_messages(messages)


def test_tools_pass_unchanged() -> None:
    tools = [{"type": "function", "function": {"name": "f", "strict": True}, "x": 1}]
    assert normalize_tools(tools) == tools
    assert normalize_tools(None) == normalize_tools([]) == []


@pytest.mark.parametrize("tools", [{}, "f", [5], [{}], [{"function": {"name": None}}]])
def test_tools_that_cannot_be_used_are_named(tools: Any) -> None:
    with pytest.raises(UsageError, match=r"tools(\[0\])? must be"):
        normalize_tools(tools)
