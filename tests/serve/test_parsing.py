import itertools
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glm_portable.serve.events import (
    Content,
    Event,
    ParsedMessage,
    Reasoning,
    ToolCall,
    ToolCallArguments,
    ToolCallStart,
    fold,
)
from glm_portable.serve.parsing import Parser, parse


def tool(name: str, **properties: Any) -> dict[str, Any]:
    parameters = {"type": "object", "properties": properties}
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


TOOLS = [
    tool("look", place={"type": "string"}, days={"type": "integer"}, deep={"type": "object"}),
    tool("look_up", text={"type": "string"}),
    tool("now"),
]


def message(text: str, tools: Any = TOOLS, **options: Any) -> tuple[Any, Any, list[Any]]:
    """What a text parses to: reasoning, content, and (name, arguments) of each call."""
    found = parse(text, tools, **options)
    calls = [(call.name, json.loads(call.arguments)) for call in found.tool_calls]
    return found.reasoning, found.content, calls


def written(name: str, pairs: tuple[tuple[str, str], ...], newline: str) -> str:
    inside = "".join(
        f"<arg_key>{key}</arg_key>{newline}<arg_value>{value}</arg_value>{newline}"
        for key, value in pairs
    )
    return f"<tool_call>{name}{newline}{inside}</tool_call>"


def call45(name: str, *pairs: tuple[str, str]) -> str:
    return written(name, pairs, "\n")


def call47(name: str, *pairs: tuple[str, str]) -> str:
    return written(name, pairs, "")


@pytest.mark.parametrize(
    ("text", "reasoning", "content"),
    [
        ("\n<think>r</think>\nc", "r", "c"),
        ("<think>r</think>c", "r", "c"),
        ("\n<think></think>\n\n c", None, "c"),
        ("<think>\n  r\n\ns \n</think>c", "r\n\ns", "c"),
        ("c", None, "c"),
        ("\nno tag\n", None, "no tag\n"),
        ("<think>never closed\n", "never closed", None),
        ("<think>cut </thi", "cut </thi", None),
        ("<thi", None, "<thi"),
        ("<thinking>c", None, "<thinking>c"),
        ("c <think>d</think> e", None, "c <think>d</think> e"),
        ("<think>r</think>a</think>b", "r", "a</think>b"),
        ("<think>r</think>\n    code", "r", "code"),
        ("<think>r</think>\u3000\u3000段落", "r", "\u3000\u3000段落"),
        ("", None, None),
        (" \n", None, None),
    ],
)
def test_thinking_and_content(text: str, reasoning: str | None, content: str | None) -> None:
    assert message(text) == (reasoning, content, [])


@pytest.mark.parametrize(
    ("text", "reasoning", "content"),
    [
        ("r</think>c", "r", "c"),
        ("\n r </think> c", "r", "c"),
        ("\n<think>r</think>c", "r", "c"),
        ("</think>c", None, "c"),
        ("no end", "no end", None),
        ("", None, None),
    ],
)
def test_a_prompt_that_opened_the_thinking(
    text: str, reasoning: str | None, content: str | None
) -> None:
    assert message(text, starts_in_reasoning=True) == (reasoning, content, [])


@pytest.mark.parametrize("text", ["c", "<think>r</think>c", "r</think>c", "c </think>"])
def test_without_thinking_all_text_is_content(text: str) -> None:
    assert message(text, thinking=False) == (None, text, [])
    assert message(text, thinking=False, starts_in_reasoning=True) == (None, text, [])
    assert message(f"\n{text}", thinking=False) == (None, text, [])


@pytest.mark.parametrize("layout", [call45, call47])
def test_a_call_in_either_layout(layout: Any) -> None:
    text = layout("look", ("place", "北京"), ("days", "3"))
    expected = [("look", {"place": "北京", "days": 3})]
    assert message(text) == (None, None, expected)
    assert message(f"\n<think>r</think>\nI look.\n{text}") == ("r", "I look.", expected)


@pytest.mark.parametrize(
    "text",
    [
        "<tool_call>now\n</tool_call>",
        "<tool_call>now</tool_call>",
        "<tool_call>\n now \n</tool_call>",
        "<tool_call>now\n",
        "<tool_call>now<arg_key>",
        "<tool_call>now\nsome words\n</tool_call>",
        "<tool_call>now<arg_key>k</arg_key></tool_call>",
        "<tool_call>now<arg_key>k</tool_call>",
    ],
)
def test_a_call_without_arguments(text: str) -> None:
    assert parse(text, TOOLS).tool_calls[0].arguments == "{}"
    assert message(text) == (None, None, [("now", {})])


def test_text_between_calls_is_content_and_the_space_around_them_is_not() -> None:
    calls = [("now", {}), ("look", {"days": 1}), ("now", {})]
    text = f" A.\n{call45('now')}\n{call45('look', ('days', '1'))}\n\nB.\n{call47('now')}\n "
    assert message(text) == (None, "A.\n\n\n\nB.", calls)
    assert message(f"A.\n{call45('now')}B.\n") == (None, "A.\nB.\n", [("now", {})])


def test_a_call_inside_the_thinking_ends_it() -> None:
    text = f"<think>hm \n{call45('now')}\nand then"
    assert message(text) == ("hm", "and then", [("now", {})])
    assert message(f"hm{call47('now')}", starts_in_reasoning=True) == ("hm", None, [("now", {})])


def test_an_undeclared_tool_is_no_call_and_its_text_is_content() -> None:
    text = call45("fly", ("to", "x"))
    assert message(f"a {text}") == (None, f"a {text}", [])
    assert message(f"<think>r\n{text}") == ("r", text, [])
    assert message(f"{text}\n{call45('now')}") == (None, text, [("now", {})])


def test_text_after_a_mere_tag_is_not_held_back_for_long() -> None:
    parser = Parser(TOOLS)
    text = "<tool_call>" + "no name, no newline " * 20
    seen = fold([event for piece in text for event in parser.feed(piece)]).content or ""
    assert text.startswith(seen) and len(seen) == len(text.rstrip())
    near = "<tool_call>" + " " * 248 + "look_up\n"  # its newline is the last character that counts
    assert message(near) == (None, None, [("look_up", {})])
    assert message(near.replace("look", " look")) == (None, near.replace("look", " look"), [])
    for text in (near, near.replace("look", " look")):
        assert in_pieces(list(text), {}) == in_pieces([text], {})


@pytest.mark.parametrize("name", ["Look", "look_", "loo", "look up", "x" * 300 + "look"])
def test_names_are_compared_whole(name: str) -> None:
    assert message(call45(name)) == (None, call45(name), [])


def test_a_tool_call_tag_that_is_only_mentioned_stays_reasoning() -> None:
    thought = "I write <tool_call> and the name"
    assert message(f"<think>{thought}\n</think>c") == (thought, "c", [])
    assert message("<think>a <tool_call>now</think>c") == ("a <tool_call>now", "c", [])
    assert message("<think>a <tool_call></think>c") == ("a <tool_call>", "c", [])


@pytest.mark.parametrize("options", [{"tools": None}, {"tools": []}, {"parse_tools": False}])
def test_without_tools_a_call_is_text(options: dict[str, Any]) -> None:
    text = call45("now")
    assert message(text, **options) == (None, text, [])
    assert message(f"<think>{text}", **options) == (text, None, [])


@pytest.mark.parametrize("value", ["5", " a\n", "", '"q"', "\\", "</arg_key><tool_call>now", "a<b"])
def test_a_string_is_verbatim(value: str) -> None:
    assert message(call47("look", ("place", value))) == (None, None, [("look", {"place": value})])


def test_keys_are_stripped() -> None:
    text = "<tool_call>look<arg_key>\n place </arg_key> : <arg_value> a </arg_value></tool_call>"
    assert message(text) == (None, None, [("look", {"place": " a "})])


def test_json_values_keep_their_spelling() -> None:
    text = call45("look", ("days", " 1.0 "), ("deep", '{"a": [0.10000000000000000001]}'))
    arguments = parse(text, TOOLS).tool_calls[0].arguments
    assert arguments == '{"days": 1.0, "deep": {"a": [0.10000000000000000001]}}'


@pytest.mark.parametrize("value", ["soon", "NaN", "-Infinity", "{'a': 1}", "[1", "", "1" * 5000])
def test_what_is_no_json_is_a_string(value: str) -> None:
    assert message(call45("look", ("days", value)))[2] == [("look", {"days": value})]


def test_absurd_depth_is_a_string() -> None:
    value = "[" * 100_000
    assert message(call45("look", ("deep", value)))[2] == [("look", {"deep": value})]


def test_the_first_of_a_repeated_key_counts() -> None:
    text = call45("look", ("place", "a"), ("place", "b"), ("days", "1"), ("days", "2"))
    assert parse(text, TOOLS).tool_calls[0].arguments == '{"place": "a", "days": 1}'


@pytest.mark.parametrize(
    ("text", "arguments"),
    [
        ("<tool_call>look\n<arg_key>place</arg_key>\n<arg_value>Par", {"place": "Par"}),
        ("<tool_call>look<arg_key>place</arg_key><arg_value>a</arg_val", {"place": "a</arg_val"}),
        ("<tool_call>look<arg_key>place</arg_key><arg_value>", {}),
        ("<tool_call>look<arg_key>days</arg_key><arg_value>1", {}),
        (call47("look", ("place", "a"))[:-12] + "<arg_key>da", {"place": "a"}),
        (call47("look", ("place", "a"))[:-3], {"place": "a"}),
    ],
)
def test_a_call_that_is_cut_off_keeps_what_is_complete(text: str, arguments: Any) -> None:
    assert message(text) == (None, None, [("look", arguments)])


@pytest.mark.parametrize("text", ["<tool_call>", "<tool_call>no", "<tool_call>now", "<tool_ca"])
def test_cut_off_inside_the_name_it_is_text(text: str) -> None:
    assert message(f"a {text}") == (None, f"a {text}", [])
    assert message(f"<think>a {text}") == (f"a {text}", None, [])


@pytest.mark.parametrize(
    ("text", "calls"),
    [
        ("<tool_call>now<tool_call>now</tool_call>", [("now", {}), ("now", {})]),
        (
            "<tool_call>look<arg_key>days<arg_value>1</arg_value></tool_call>",
            [("look", {"days": 1})],
        ),
        (
            "<tool_call>look<arg_key>x</arg_key><arg_key>days</arg_key><arg_value>1</arg_value>",
            [("look", {"days": 1})],
        ),
    ],
)  # fmt: skip
def test_forgotten_closing_tags(text: str, calls: Any) -> None:
    assert message(text)[2] == calls


def test_strings_stream_before_they_are_complete() -> None:
    parser = Parser(TOOLS, new_id=lambda: "id")
    assert parser.feed("<tool_call>look\n") == [ToolCallStart(0, "id", "look")]
    parser.feed("<arg_key>place</arg_key><arg_value>")
    assert parser.feed('say "hi') == [ToolCallArguments(0, '{"place": "say \\"hi')]
    assert parser.feed(" you") == [ToolCallArguments(0, " you")]
    assert parser.feed("</arg_value></tool_call>") == [
        ToolCallArguments(0, '"'),
        ToolCallArguments(0, "}"),
    ]
    assert parser.finish() == []


def test_text_streams_at_once_except_for_what_may_be_a_tag() -> None:
    parser = Parser(TOOLS)
    assert parser.feed("<think>a") == [Reasoning("a")]
    assert parser.feed(" b<") == [Reasoning(" b")]
    assert parser.feed("/thin") == []
    assert parser.feed("g</think>c <tool") == [Reasoning("</thing"), Content("c")]
    assert parser.feed("s>") == [Content(" <tools>")]


def test_ids_are_distinct_and_indices_count() -> None:
    calls = [e for e in Parser(TOOLS).feed(call45("now") * 3) if isinstance(e, ToolCallStart)]
    assert [call.index for call in calls] == [0, 1, 2]
    assert len({call.id for call in calls}) == 3


FRAGMENTS = [
    "<think>", "</think>", "<tool_call>", "</tool_call>", "<arg_key>", "</arg_key>", "<arg_value>",
    "</arg_value>", "now", "look", "look_up", "place", "days", "text", "12", '{"a": 1}', "\n", " ",
    "a", "é🚀", '"', "<", ">", "</", "<t", "<tool_call", "<arg_", "call>", "fly", "\\", "\u3000",
]  # fmt: skip
WELL_FORMED = st.sampled_from(
    [
        call45("now"),
        call45("look", ("place", " x\n"), ("days", "3"), ("odd", "true")),
        call47("look_up", ("text", "<tool_call>now</tool_call>")),
        call47("fly", ("to", "y")),
        "\n<think>r r</think>\n",
    ]
)
TEXTS = st.lists(st.one_of(st.sampled_from(FRAGMENTS), WELL_FORMED), max_size=14).map("".join)
OPTIONS = st.fixed_dictionaries(
    {
        "starts_in_reasoning": st.booleans(),
        "thinking": st.sampled_from([True, True, False]),
        "parse_tools": st.sampled_from([True, True, False]),
    }
)


def in_pieces(pieces: list[str], options: dict[str, bool]) -> ParsedMessage:
    """Fold a stream, checking what must hold at every moment of it."""
    parser = Parser(TOOLS, new_id=lambda: "id", **options)
    events: list[Event] = []
    for piece in pieces:
        events += parser.feed(piece)
    events += parser.finish()
    assert all(event.text for event in events if not isinstance(event, ToolCallStart))
    started = -1
    for event in events:
        if isinstance(event, ToolCallStart):
            started += 1
        if isinstance(event, ToolCallStart | ToolCallArguments):
            assert event.index == started
    return fold(events)


@settings(max_examples=400, deadline=None)
@given(TEXTS, OPTIONS, st.lists(st.integers(0, 400), max_size=12))
def test_every_cut_of_a_text_parses_alike(
    text: str, options: dict[str, bool], cuts: list[int]
) -> None:
    borders = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    pieces = [text[a:b] for a, b in itertools.pairwise(borders)]
    expected = in_pieces([text], options)
    assert in_pieces(pieces, options) == expected
    assert in_pieces(list(text), options) == expected
    for call in expected.tool_calls:
        assert isinstance(json.loads(call.arguments), dict)


@pytest.mark.parametrize("text", ["\n<think>a ", "</think>\n b", "a<tool_call>", "<tool_call>n"])
@pytest.mark.parametrize("starts_in_reasoning", [True, False])
def test_all_cuts_of_a_short_text(text: str, starts_in_reasoning: bool) -> None:
    options = {"starts_in_reasoning": starts_in_reasoning}
    expected = in_pieces([text], options)
    for cut in itertools.product([False, True], repeat=len(text) - 1):
        borders = [0, *(i + 1 for i, here in enumerate(cut) if here), len(text)]
        pieces = [text[a:b] for a, b in itertools.pairwise(borders)]
        assert in_pieces(pieces, options) == expected


def test_all_pairs_of_cuts_of_a_whole_message() -> None:
    text = (
        f"\n<think>r</think>\nc\n{call45('look', ('place', ' x'), ('days', '3'))}\n{call47('now')}"
    )
    expected = in_pieces([text], {})
    assert len(expected.tool_calls) == 2
    for a, b in itertools.combinations(range(len(text) + 1), 2):
        assert in_pieces([text[:a], text[a:b], text[b:]], {}) == expected


SAFE = st.text(alphabet="abé🚀 \n\"\\{}[]1,:'/>", max_size=12)
JSON_VALUES = st.one_of(
    st.integers(), st.booleans(), st.none(), st.lists(st.integers()), st.floats(-9, 9)
)
LOOKS = st.fixed_dictionaries(
    {}, optional={"place": SAFE, "days": JSON_VALUES, "deep": JSON_VALUES, "odd": JSON_VALUES}
)
CALLS: st.SearchStrategy[tuple[str, dict[str, Any]]] = st.one_of(
    st.tuples(st.just("look"), LOOKS), st.just(("now", {}))
)


@settings(max_examples=200, deadline=None)
@given(SAFE, SAFE, st.lists(CALLS), st.sampled_from([call45, call47]))
def test_what_a_model_means_is_what_a_client_gets(
    reasoning: str, content: str, calls: list[tuple[str, dict[str, Any]]], layout: Any
) -> None:
    """Writes a message as the format prescribes, by its own rules, and expects it back."""
    text = f"\n<think>{reasoning}</think>\n{content}"
    for name, values in calls:
        pairs = [(k, v if isinstance(v, str) else json.dumps(v)) for k, v in values.items()]
        text += f"\n{layout(name, *pairs)}"
    shown = content.strip(" \n") if calls else content.lstrip(" \n")
    assert message(text) == (reasoning.strip(" \n") or None, shown or None, calls)


@settings(deadline=None)
@given(TEXTS)
def test_content_without_calls_loses_only_space(text: str) -> None:
    found = parse(text, TOOLS, thinking=False, parse_tools=False)
    assert (found.content or "") == text.lstrip(" \t\r\n")


def test_a_folded_message_is_what_the_events_say() -> None:
    events: list[Event] = [
        Reasoning("r"), Content("a"), ToolCallStart(0, "i", "n"), ToolCallArguments(0, "{"),
        ToolCallArguments(0, "}"), Content("b"), ToolCallStart(1, "j", "m"),
    ]  # fmt: skip
    expected = ParsedMessage("r", "ab", (ToolCall("i", "n", "{}"), ToolCall("j", "m", "")))
    assert fold(events) == expected
    assert fold([]) == ParsedMessage(None, None, ())
