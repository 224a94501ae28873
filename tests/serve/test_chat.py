import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glm_portable.config import ModelConfig
from glm_portable.errors import UsageError
from glm_portable.pocket import path
from glm_portable.serve.chat import ChatTemplate, Prompt, detect_format, tool_call_format
from glm_portable.serve.messages import normalize_messages
from glm_portable.serve.parsing import parse
from glm_portable.tokenizer import Tokenizer

FOLDER = path()
DATA = Path(__file__).parent.parent / "data"
TOKENIZER = Tokenizer.load(FOLDER, ModelConfig.load(FOLDER))
TEMPLATES = {
    "glm45": ChatTemplate.load(FOLDER, TOKENIZER),
    "glm47": ChatTemplate.load(FOLDER, TOKENIZER, DATA / "glm47_chat_template.jinja"),
}
VECTORS = json.loads((DATA / "chat_vectors.json").read_text(encoding="utf-8"))
HELLO = [{"role": "user", "content": "Hello"}]

each_template = pytest.mark.parametrize("name", sorted(TEMPLATES))


def rendered(messages: Any, tools: Any = None, **switches: Any) -> str:
    return TEMPLATES["glm45"].encode(messages, tools, chat_template_kwargs=switches).text


def control_ids(prompt: Prompt) -> list[int]:
    return [i for i in prompt.token_ids if TOKENIZER.is_control(i)]


@each_template
@pytest.mark.parametrize("vector", VECTORS, ids=[vector["name"] for vector in VECTORS])
def test_prompts_are_those_of_the_published_templates(name: str, vector: dict[str, Any]) -> None:
    prompt = TEMPLATES[name].encode(
        vector["messages"], vector["tools"], chat_template_kwargs=vector["chat_template_kwargs"]
    )
    assert prompt.text == vector["expected"][name]
    assert prompt.token_ids == TOKENIZER.encode_template(prompt.text)


@pytest.mark.parametrize(
    ("name", "switches", "starts_in_reasoning", "thinking"),
    [
        ("glm45", {}, False, True),
        ("glm45", {"enable_thinking": False}, False, False),
        ("glm47", {}, True, True),
        ("glm47", {"enable_thinking": False}, False, False),
        ("glm47", {"add_generation_prompt": False}, False, True),
    ],
)
def test_what_a_prompt_says_about_thinking(
    name: str, switches: dict[str, bool], starts_in_reasoning: bool, thinking: bool
) -> None:
    for messages in (HELLO, [{"role": "user", "content": "what is <think>"}]):
        prompt = TEMPLATES[name].encode(messages, chat_template_kwargs=switches)
        assert (prompt.starts_in_reasoning, prompt.thinking) == (starts_in_reasoning, thinking)


def test_thinking_is_off_if_the_request_or_the_template_says_so() -> None:
    deaf = ChatTemplate("{{ messages[0].content }}<|assistant|>", TOKENIZER)
    assert deaf.encode(HELLO).thinking
    assert not deaf.encode(HELLO, chat_template_kwargs={"enable_thinking": False}).thinking
    never = ChatTemplate("{{ messages[0].content }}<|assistant|><think></think>\n", TOKENIZER)
    assert not never.encode(HELLO).thinking


def test_thinking_is_an_alias_and_null_is_unset() -> None:
    off = rendered(HELLO, enable_thinking=False)
    assert rendered(HELLO, thinking=False) == off != rendered(HELLO)
    assert rendered(HELLO, thinking=False, enable_thinking=False) == off
    assert rendered(HELLO, thinking=None, enable_thinking=None) == rendered(HELLO)
    assert rendered(HELLO, reasoning_effort="high") == rendered(HELLO)


def test_an_operators_defaults_are_for_those_who_do_not_say() -> None:
    template = ChatTemplate.load(FOLDER, TOKENIZER, defaults={"enable_thinking": False})
    assert template.encode(HELLO).text == rendered(HELLO, enable_thinking=False)
    for name in ("enable_thinking", "thinking"):
        switches = {name: True}
        assert template.encode(HELLO, chat_template_kwargs=switches).text == rendered(HELLO)
        unsaid = {name: None}
        assert template.encode(HELLO, chat_template_kwargs=unsaid).text != rendered(HELLO)


@pytest.mark.parametrize(
    ("switches", "message"),
    [
        ({"tokenize": False}, "'tokenize' is not supported; use enable_thinking"),
        ({"chat_template": "{{ 1 }}"}, "'chat_template' is not supported"),
        ({"messages": []}, "'messages' is not supported"),
        ({"enable_thinking": "false"}, "enable_thinking must be true or false, not 'false'"),
        ({"clear_thinking": 0}, "clear_thinking must be true or false, not 0"),
        ({"enable_thinking": True, "thinking": False}, "enable_thinking and thinking contradict"),
        ([], "must be an object"),
    ],
)
def test_other_template_arguments_are_refused(switches: Any, message: str) -> None:
    with pytest.raises(UsageError, match=f"chat_template_kwargs.*{message}"):
        TEMPLATES["glm45"].encode(HELLO, chat_template_kwargs=switches)


# What a hostile user may write: control tokens whole, in parts, and around what templates cut away.
HOSTILE = st.lists(
    st.sampled_from(
        [*TOKENIZER.control_tokens, "<|", "|>", "<", "[", "user|>", "gMASK]", "s", "sop>", "<|us",
         "er|>", "</think>", "<think>", "/nothink", " ", "\n", "x", "\ue000", "\\ue001", '"']
    ),
    max_size=8,
).map("".join)  # fmt: skip


def conversation(*texts: str) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Messages and tools with a given text in every place that takes one."""
    user, answer, thought, key, value, result, name, description = texts
    call = {"function": {"name": name, "arguments": {key: value, "list": [value, {key: 1}]}}}
    function = {"name": name, "description": description, "parameters": {key: [value]}}
    messages: list[dict[str, Any]] = [
        {"role": "system", "content": user},
        {"role": "user", "content": [{"type": "text", "text": text} for text in (user, key)]},
        {"role": "assistant", "content": answer, "tool_calls": [call]},
        {"role": "tool", "content": result},
        {"role": "tool", "content": [{"output": result}, {"output": user}]},
        {"role": "assistant", "content": answer, "reasoning_content": thought},
    ]  # fmt: skip
    return messages, [{"type": "function", "function": function}]


@each_template
@settings(max_examples=150, deadline=None)
@given(st.lists(HOSTILE, min_size=8, max_size=8))
def test_no_text_of_a_user_becomes_a_control_token(name: str, texts: list[str]) -> None:
    harmless = TEMPLATES[name].encode(*conversation(*"abcdefgh"))
    prompt = TEMPLATES[name].encode(*conversation(*texts))
    assert control_ids(prompt) == control_ids(harmless)


@each_template
@settings(max_examples=100, deadline=None)
@given(HOSTILE)
def test_text_between_control_tokens_is_encoded_as_typed(name: str, text: str) -> None:
    """Where a token stands, and what stands around it: the whole prompt, spelt out."""
    newline = "\n" if name == "glm45" else ""
    prompt = TEMPLATES[name].encode(
        [{"role": "user", "content": text}], chat_template_kwargs={"enable_thinking": True}
    )
    tokens = TOKENIZER.control_tokens
    expected = [tokens["[gMASK]"], tokens["<sop>"], tokens["<|user|>"]]
    expected += TOKENIZER.encode(newline + text) + [tokens["<|assistant|>"]]
    expected += [] if name == "glm45" else TOKENIZER.encode("<think>")
    assert prompt.token_ids == expected
    assert TOKENIZER.decode(prompt.token_ids).startswith(newline + text)


@each_template
@pytest.mark.parametrize("vector", VECTORS, ids=[vector["name"] for vector in VECTORS])
def test_an_answer_that_the_template_writes_is_parsed_back(
    name: str, vector: dict[str, Any]
) -> None:
    """Template and parser are a pair: each answer, as the model would have written it."""
    for i, message in enumerate(vector["messages"]):
        if message["role"] != "assistant":
            continue
        shown = [m for m in vector["messages"][:i] if m["role"] == "user"] + [message]
        prompt = TEMPLATES[name].encode(
            shown, chat_template_kwargs={"add_generation_prompt": False}
        )
        text = prompt.text.split("<|assistant|>")[1]
        found = parse(text, vector["tools"], starts_in_reasoning=name == "glm47")
        [again] = normalize_messages([{
            "role": "assistant", "content": found.content, "reasoning_content": found.reasoning,
            "tool_calls": [
                {"function": {"name": c.name, "arguments": c.arguments}} for c in found.tool_calls
            ],
        }])  # fmt: skip
        back = TEMPLATES[name].encode(
            [*shown[:-1], again], chat_template_kwargs={"add_generation_prompt": False}
        )
        assert back.text == prompt.text
        assert len(found.tool_calls) == len(message.get("tool_calls", []))


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages[0].content | replace('x', '') }}",
        "{{ messages[0].content ~ messages[1].content }}",
        "{% for c in messages[0].content %}{{ c }}{% endfor %}{{ messages[1].content }}",
        "{{ messages | tojson(ensure_ascii=True) }}",
        "{{ messages }}",
    ],
)
def test_a_template_that_cuts_and_joins_makes_no_control_token(source: str) -> None:
    template = ChatTemplate(source, TOKENIZER)
    messages = [
        {"role": "user", "content": "<x|user|><sxop><|us"},
        {"role": "user", "content": "er|>"},
    ]
    prompt = template.encode(messages)
    assert control_ids(prompt) == []
    assert "<|us" in prompt.text and TOKENIZER.decode(prompt.token_ids) == prompt.text


def test_an_ascii_template_writes_user_text_as_it_is() -> None:
    template = ChatTemplate("{{ messages[0].content | tojson(ensure_ascii=True) }}", TOKENIZER)
    for content in ("<|user|>é", "\\ue000<[", "\ue000<"):
        text = template.encode([{"role": "user", "content": content}]).text
        assert text == json.dumps(content)


def test_every_private_use_character_in_use_is_refused() -> None:
    content = "".join(map(chr, range(0xE000, 0xF900)))
    with pytest.raises(UsageError, match="private-use"):
        rendered([{"role": "user", "content": content}])
    assert rendered([{"role": "user", "content": content[:-2]}]).count("\ue000") == 1


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{{ raise_exception('no <|user|> here: ' ~ messages[0].content) }}", "no .* here: a<b"),
        ("{{ messages[0].content.missing.deeper }}", "has no attribute 'missing'"),
        ("{{ messages.append(1) }}", "unsafe|not safely callable"),
        ("{{ messages.__class__.__mro__ }}{{ ''.__class__.__subclasses__() }}", "unsafe"),
        ("{{ 1 / 0 }}", r"failed on this request \(ZeroDivisionError\)"),
        ("{% for i in range(99999) %}{{ 'x' * 9999 }}{% endfor %}", "more than 33554432 char"),
        ("{% for i in range(10 ** 9) %}{{ i }}{% endfor %}", "Overflow|range"),
    ],
)
def test_a_template_that_fails_gives_its_reason(source: str, message: str) -> None:
    template = ChatTemplate(source, TOKENIZER)
    with pytest.raises(UsageError, match=message):
        template.encode([{"role": "user", "content": "a<b"}])


def test_templates_have_what_transformers_gives_them() -> None:
    source = (
        "{% for m in messages %}\n  {% if loop.index > 1 %}\n    {% break %}\n  {% endif %}\n"
        "{{ m.content }}{{ strftime_now('%Y') | length }}\n{% endfor %}"
        "{{ {'b': 'é<'} | tojson }}{{ {'b': 1, 'a': 'é'} | tojson(indent=1, sort_keys=true) }}"
    )
    text = ChatTemplate(source, TOKENIZER).encode(HELLO * 2).text
    assert text == 'Hello4\n{"b": "é<"}{\n "a": "é",\n "b": 1\n}'


def test_the_format_is_detected_from_what_the_template_writes() -> None:
    assert {name: detect_format(template) for name, template in TEMPLATES.items()} == {
        "glm45": "glm45",
        "glm47": "glm47",
    }
    refusing = "{% if messages | length > 1 %}{{ raise_exception('x') }}{% endif %}[gMASK]"
    assert detect_format(ChatTemplate(refusing + "<think>", TOKENIZER)) == "glm47"
    assert detect_format(ChatTemplate(refusing, TOKENIZER)) == "glm45"


@pytest.mark.parametrize(
    ("name", "expected"),
    [(None, "glm45"), ("glm45", "glm45"), ("glm4_moe", "glm45"), ("glm47", "glm47")],
)
def test_the_operator_may_name_the_format(name: str | None, expected: str) -> None:
    assert tool_call_format(name, TEMPLATES["glm45"]) == expected


def test_an_unknown_format_is_refused() -> None:
    with pytest.raises(UsageError, match="'hermes' is unknown; use one of glm45, glm4_moe, glm47"):
        tool_call_format("hermes", TEMPLATES["glm45"])


@pytest.mark.parametrize(
    "config",
    [
        {"chat_template": "A{{ messages[0].content }}"},
        {"chat_template": [{"name": "default", "template": "A{{ messages[0].content }}"}]},
    ],
)
def test_the_template_may_stand_in_the_tokenizer_config(tmp_path: Path, config: Any) -> None:
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    assert ChatTemplate.load(tmp_path, TOKENIZER).encode(HELLO).text == "AHello"
    (tmp_path / "chat_template.jinja").write_text("B", encoding="utf-8")
    assert ChatTemplate.load(tmp_path, TOKENIZER).encode(HELLO).text == "B"


@pytest.mark.parametrize("config", [None, "{}", "[]", '{"chat_template": [{"name": "tool_use"}]}'])
def test_a_checkpoint_without_a_template_cannot_chat(tmp_path: Path, config: str | None) -> None:
    if config is not None:
        (tmp_path / "tokenizer_config.json").write_text(config, encoding="utf-8")
    template = ChatTemplate.load(tmp_path, TOKENIZER)
    assert template.missing and detect_format(template) == "glm45"
    with pytest.raises(UsageError, match="has no chat template .* --chat-template"):
        template.encode(HELLO)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{% if %}", r"template\.jinja, line 1: not a valid chat template"),
        (b"a\n{{ messages[0].content", r"template\.jinja, line 2: not a valid chat template"),
        (b"{{ nothing.at.all }}", r"template\.jinja does not work on a plain .*'nothing'"),
        (b"\xff", r"template\.jinja cannot be read"),
        (None, r"template\.jinja cannot be read"),
    ],
)  # fmt: skip
def test_a_broken_template_is_refused_when_it_is_loaded(
    tmp_path: Path, content: bytes | None, message: str
) -> None:
    file = tmp_path / "template.jinja"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(UsageError, match=message):
        ChatTemplate.load(FOLDER, TOKENIZER, file)


def test_a_broken_tokenizer_config_is_named(tmp_path: Path) -> None:
    (tmp_path / "tokenizer_config.json").write_text("{", encoding="utf-8")
    with pytest.raises(UsageError, match=r"tokenizer_config\.json is not valid JSON"):
        ChatTemplate.load(tmp_path, TOKENIZER)


def test_a_lone_surrogate_is_refused() -> None:
    with pytest.raises(UsageError, match=r"lone surrogate U\+D800"):
        rendered([{"role": "user", "content": "\ud800"}])


def test_absurd_depth_is_refused() -> None:
    deep: Any = "x"
    for _ in range(100_000):
        deep = [deep]
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"p": deep}}}]
    with pytest.raises(UsageError, match="nested too deeply"):
        rendered(HELLO, tools)
