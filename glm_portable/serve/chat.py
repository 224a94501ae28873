"""Conversations to prompts, through the checkpoint's own chat template.

No text that a user can send becomes a control token. Before rendering, the first characters of
control tokens are replaced in every string of the request (see `PlainText`), so that each control
token in the rendered text is the template's own. It becomes its id; the text between is put back
and encoded as plain text. Tags (<think>, /nothink, ...) keep their meaning: users type them on
purpose.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import jinja2

from glm_portable.errors import UsageError
from glm_portable.serve.messages import normalize_messages, normalize_tools
from glm_portable.serve.plain_text import PlainText
from glm_portable.serve.template import compile_template, render
from glm_portable.tokenizer import Limit, Tokenizer

Format = Literal["glm45", "glm47"]
"""The two layouts of a tool call: with newlines (GLM-4.5 and 4.6) and without (GLM-4.7)."""

# --tool-call-parser takes vLLM's names, of which glm4_moe is an older one.
_FORMATS: dict[str, Format] = {"glm45": "glm45", "glm4_moe": "glm45", "glm47": "glm47"}

SWITCHES = {
    "enable_thinking": "enable_thinking",
    "thinking": "enable_thinking",
    "clear_thinking": "clear_thinking",
    "add_generation_prompt": "add_generation_prompt",
}
IGNORED_SWITCHES = frozenset({"reasoning_effort"})


@dataclass(frozen=True)
class Prompt:
    """A rendered conversation.

    text: what the template wrote. starts_in_reasoning: it ends in <think>, so that what is
    generated begins inside the thinking. thinking: whether the model may think at all.
    """

    token_ids: list[int]
    text: str
    starts_in_reasoning: bool
    thinking: bool


class ChatTemplate:
    """A compiled chat template and the tokenizer its text is meant for.

    source None: the model has none, as base models do not; it completes text, and `encode` says so.
    defaults: template variables that a conversation may set otherwise.
    """

    def __init__(
        self,
        source: str | None,
        tokenizer: Tokenizer,
        name: str = "chat template",
        defaults: Mapping[str, bool] = MappingProxyType({}),
    ) -> None:
        self.source, self._defaults = source, {"add_generation_prompt": True, **defaults}
        self._template: jinja2.Template | None = None
        if source is not None:
            self._template = compile_template(source, name)
        self._tokenizer = tokenizer

    @property
    def missing(self) -> bool:
        """Whether there is no template, so that `encode` always raises."""
        return self._template is None

    @classmethod
    def load(
        cls,
        folder: Path,
        tokenizer: Tokenizer,
        file: Path | None = None,
        defaults: Mapping[str, bool] = MappingProxyType({}),
    ) -> "ChatTemplate":
        """The operator's `file`, or the template of a checkpoint folder, which may be missing.

        Raises UsageError if it cannot be read, or cannot render a plain conversation.
        """
        source, name = _find_source(folder, file)
        template = cls(source, tokenizer, name, defaults)
        try:
            if not template.missing:
                template.encode([{"role": "user", "content": "Hello"}])
        except UsageError as error:
            raise UsageError(f"{name} does not work on a plain conversation: {error}") from None
        return template

    def encode(
        self,
        messages: Any,
        tools: Any = None,
        *,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        limit: Limit | None = None,
    ) -> Prompt:
        """Render a conversation and encode it.

        messages, tools: as in OpenAI's API. chat_template_kwargs: enable_thinking (or thinking),
        clear_thinking, add_generation_prompt. Raises UsageError on whatever cannot be used, and
        on more tokens than the limit.
        """
        if self._template is None:
            raise UsageError(
                "this model has no chat template (chat_template.jinja, or chat_template in "
                "tokenizer_config.json); name one with --chat-template, or complete plain text."
            )
        switches = self._defaults | template_variables(chat_template_kwargs)
        try:
            request = [normalize_messages(messages), normalize_tools(tools)]
            plain = PlainText(request, self._tokenizer.control_tokens, self._tokenizer.tags)
            shown = plain.protect(request)
        except RecursionError:
            raise UsageError("messages or tools are nested too deeply.") from None
        try:
            text = render(
                self._template, {"messages": shown[0], "tools": shown[1] or None, **switches}
            )
        except UsageError as error:
            raise UsageError(plain.restore(str(error))) from None
        end = text.rstrip() if switches["add_generation_prompt"] else ""
        restored = plain.restore(text)
        if limit is not None:
            self._tokenizer.check(restored, limit)
        return Prompt(
            token_ids=self._tokenizer.encode_template(text, plain.restore, limit),
            text=restored,
            starts_in_reasoning=end.endswith("<think>"),
            thinking=switches.get("enable_thinking", True) and not end.endswith("</think>"),
        )


def detect_format(template: ChatTemplate) -> Format:
    """The tool-call layout that a template shows the model, by what it writes for a call."""
    if template.missing:
        return "glm45"
    call = {"function": {"name": "probe", "arguments": {"key": "value"}}}
    conversation = [
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
    ]
    try:
        text = template.encode(conversation).text
    except UsageError:  # a template without tool calls; GLM-4.7's prompts are told by their end
        prompt = template.encode(conversation[:1])
        return "glm47" if prompt.starts_in_reasoning else "glm45"
    return "glm47" if "<tool_call>probe<arg_key>" in text else "glm45"


def tool_call_format(name: str | None, template: ChatTemplate) -> Format:
    """The format an operator named (glm45, glm47, glm4_moe), or else the template's own."""
    if name is None:
        return detect_format(template)
    if name not in _FORMATS:
        raise UsageError(f"tool call parser {name!r} is unknown; use one of {', '.join(_FORMATS)}.")
    return _FORMATS[name]


def template_variables(given: Mapping[str, Any] | None) -> dict[str, bool]:
    """The template variables a request may set, checked one by one; None counts as not set.

    Raises UsageError for one that is unknown, no boolean or said twice.
    """
    if given is not None and not isinstance(given, Mapping):
        raise UsageError("chat_template_kwargs must be an object.")
    switches: dict[str, bool] = {}
    seen: dict[str, str] = {}
    for name, value in (given or {}).items():
        if name in IGNORED_SWITCHES or (name in SWITCHES and value is None):
            continue
        if name not in SWITCHES:
            raise UsageError(
                f"chat_template_kwargs: {name!r} is not supported; use {', '.join(SWITCHES)}."
            )
        if not isinstance(value, bool):
            raise UsageError(f"chat_template_kwargs: {name} must be true or false, not {value!r}.")
        variable = SWITCHES[name]
        if switches.get(variable, value) != value:
            raise UsageError(f"chat_template_kwargs: {seen[variable]} and {name} contradict.")
        switches[variable], seen[variable] = value, name
    return switches


def _find_source(folder: Path, file: Path | None) -> tuple[str | None, str]:
    path = file or folder / "chat_template.jinja"
    if file is None and not path.exists():
        return _source_in_config(folder / "tokenizer_config.json")
    try:
        return path.read_text(encoding="utf-8"), str(path)
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"chat template {path} cannot be read: {error}.") from None


def _source_in_config(path: Path) -> tuple[str | None, str]:
    """Older checkpoints keep the template, or a list of named ones, in tokenizer_config.json."""
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        config = None
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} is not valid JSON ({error}): download it again.") from None
    source = config.get("chat_template") if isinstance(config, dict) else None
    if isinstance(source, list):
        named = {entry.get("name"): entry.get("template") for entry in source if entry}
        source = named.get("default")
    return source if isinstance(source, str) else None, str(path)
