"""The conversations that are sent: for counting prompt tokens, for tools, and for comparing.

Any GLM can answer them; the embedded pocket model was trained on questions of these kinds.
"""

from typing import Any

from glm_portable.tasks import Case, cases
from glm_portable.verify.endpoint.chat import Message, Question

OFF = {"enable_thinking": False}
ON = {"enable_thinking": True}


def user(text: str) -> Message:
    return {"role": "user", "content": text}


def tool(name: str, description: str, required: int, **properties: str) -> Message:
    """A declared tool; properties are names and JSON types, of which the first are required."""
    fields: dict[str, Any] = {key: {"type": kind} for key, kind in properties.items()}
    for field in fields.values():
        if field["type"] == "array":
            field["items"] = {"type": "string"}
    needed = list(properties)[:required]
    schema = {"type": "object", "properties": fields, "required": needed}
    function = {"name": name, "description": description, "parameters": schema}
    return {"type": "function", "function": function}


WEATHER = tool("get_weather", "Get the weather for a city.", 1, city="string", unit="string")
HOTEL = tool(
    *("book_hotel", "Book a hotel room.", 2),
    city="string", nights="integer", breakfast="boolean",
)  # fmt: skip
MONEY = tool(
    *("convert_currency", "Convert money.", 3),
    amount="number", source="string", target="string",
)  # fmt: skip
NOTE = tool("create_note", "Create a note.", 1, text="string", tags="array")
NOW = tool("now", "Get the current date.", 0)


def called(*calls: tuple[str, str], thoughts: str | None = None) -> Message:
    """An assistant message in the history that made (name, arguments) calls."""
    message: Message = {"role": "assistant", "content": ""}
    if thoughts is not None:
        message["reasoning_content"] = thoughts
    message["tool_calls"] = [
        {"id": f"call_{i}", "type": "function", "function": {"name": name, "arguments": text}}
        for i, (name, text) in enumerate(calls)
    ]
    return message


def result(text: str, call: int = 0) -> Message:
    return {"role": "tool", "tool_call_id": f"call_{call}", "content": text}


_SUN = '{"sky": "sunny", "temp": 21}'
_ASKED = user("What is the weather in Paris?")

COUNTED = [
    Question("question", [user("Hello")]),
    Question("thinking on", [user("Hello")], switches=ON),
    Question("thinking off", [user("Hello")], switches=OFF),
    Question("system", [{"role": "system", "content": "Be brief."}, user("Hello")]),
    Question(
        "history with reasoning",
        [
            user("What is 6 times 7?"),
            {"role": "assistant", "content": "42", "reasoning_content": "Six sevens are 42."},
            user("And 7 times 8?"),
        ],
    ),
    Question("tools", [_ASKED], [WEATHER]),
    Question("tools, thinking off", [_ASKED], [WEATHER, NOW], OFF),
    Question(
        "tool result",
        [_ASKED, called(("get_weather", '{"city": "Paris"}'), thoughts="Use it."), result(_SUN)],
        [WEATHER],
    ),
    Question(
        "two tool results",
        [
            user("Weather in Paris and Rome?"),
            called(("get_weather", '{"city": "Paris"}'), ("get_weather", '{"city": "Rome"}')),
            result(_SUN),
            result(_SUN, 1),
        ],
        [WEATHER],
    ),
    Question(
        "typed arguments",
        [
            user("Book it."),
            called(("book_hotel", '{"city": "Rome", "nights": 3, "breakfast": true}')),
            result('{"booking": 1234}'),
        ],
        [HOTEL],
    ),
    Question(
        "whitespace in arguments",
        [
            user("Note it."),
            called(("create_note", '{"text": "  two\\n  lines \\n"}')),
            result("ok"),
        ],
        [NOTE],
    ),
    Question("unicode", [user("你好,世界 — naïve café, Ω≈ç√ 👩‍🚀 שלום e\u0301")]),
    Question("whitespace", [user("  a\n\n\tb  \n c ")]),
    Question("/nothink typed", [user("Quick: 3*4 /nothink")]),
    Question("/nothink typed, thinking off", [user("Quick: 3*4 /nothink")], switches=OFF),
]

TOOL_QUESTIONS = [
    Question("integer", [user("Book a hotel in Rome for 3 nights.")], [HOTEL]),
    Question(
        "integer and boolean",
        [user("I need a hotel in Rome for 3 nights, breakfast true.")],
        [HOTEL, WEATHER],
    ),
    Question("number", [user("Convert 12.5 USD to CHF.")], [MONEY]),
    Question("whitespace at the end", [user("Make a note:  apple .")], [NOTE]),
    Question("array", [user("Make a note apple with tags red and green.")], [NOTE]),
    Question("digits in a string", [user("What is the weather in 77?")], [WEATHER]),
    Question(
        "two calls",
        [user("What is the weather in Paris? Also: What is the weather in Rome?")],
        [WEATHER],
    ),
    Question("one call", [user("What is the weather in Paris in celsius?")], [WEATHER]),
    Question("no arguments", [user("What day is it today?")], [NOW]),
]
"""Whatever a model calls, what arrives can be checked against what it wrote and the schema."""

THINKING_QUESTIONS = [user("What is 17 + 25?"), user("Who are you?"), user("Sort: 41, 7, 23")]

SKILLS = ("add", "tool_call", "needle12", "recall", "count", "json", "max", "copy")


def question(case: Case) -> Question:
    switches = ON if case.thinking else OFF
    mode = "thinking" if case.thinking else "thinking off"
    return Question(f"{case.skill}, {mode}", case.messages, case.tools, switches)


def examination(count: int, seed: int) -> list[Case]:
    """`count` held-out tasks, skill after skill, with thinking and without in turn."""
    each = -(-count // (2 * len(SKILLS)))
    drawn = [
        [case for skill in SKILLS for case in cases(skill, thinking, each, seed=seed)[i : i + 1]]
        for i in range(each)
        for thinking in (True, False)
    ]
    return [case for row in drawn for case in row][:count]


def probes(seed: int = 4100) -> list[Question]:
    """The questions whose answers are compared token by token with the reference's."""
    drawn = [question(case) for case in examination(12, seed) if len(str(case.messages)) < 800]
    return [*TOOL_QUESTIONS, *drawn]


_TAGS = ("<think>", "</think>", "<tool_call>", "</tool_call>", "<arg_key>", "<arg_value>")
_CONTROL = ("<|user|>", "<|assistant|>", "<|observation|>", "<|endoftext|>", "[gMASK]", "<sop>")


def template_tags(text: str) -> list[str]:
    """The template's own tags in what a client sees, where none belongs."""
    return [tag for tag in (*_TAGS, *_CONTROL) if tag in text]
