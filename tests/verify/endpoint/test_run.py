"""Whole examinations: a sound server passes, and each faulty one fails where it should."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from glm_portable.serve import conversation, openai
from glm_portable.serve.chat import ChatTemplate, Prompt
from glm_portable.serve.errors import ApiError
from glm_portable.serve.events import ToolCallArguments
from glm_portable.serve.parsing import Parser
from glm_portable.serve.protocol import CompletionRequest
from glm_portable.serve.service import Service
from glm_portable.tokenizer import Limit
from glm_portable.verify.endpoint.run import GROUPS
from glm_portable.verify.results import Status
from tests.verify.endpoint.conftest import Look, load, served

GLM47 = Path(__file__).parents[2] / "data" / "glm47_chat_template.jinja"


def test_our_own_server_passes(look: Look, sound: str) -> None:
    found = look(sound, *GROUPS)
    assert not found.failed(), {n: found.findings(n) for n in found.failed()}
    unlooked = {n for n, check in found.checks.items() if check.status is not Status.PASS}
    assert unlooked == {"long prompts: beyond the window"}  # more than `longest`
    logprobs = found.checks["numbers: log probabilities"]
    assert "by prompt_logprobs of /v1/completions" in logprobs.note
    assert logprobs.measures["kl_mean"] < 1e-5
    assert found.checks["tool calls: as the model wrote them"].measures["compared"] >= 3
    assert found.checks["determinism: beside other requests"].measures["differing"] == 0
    assert found.checks["accuracy: alone and under load"].measures["right_alone"] >= 1


@pytest.mark.parametrize(
    ("refused", "how"),
    [
        (("prompt_logprobs",), "echo"),
        (("prompt_logprobs", "echo"), "one token after each prefix"),
    ],
)
def test_a_server_that_refuses_the_shorter_ways_passes_by_another(
    look: Look, sound: str, monkeypatch: pytest.MonkeyPatch, refused: tuple[str, ...], how: str
) -> None:
    start = openai.start_completion

    def refusing(service: Service, request: CompletionRequest) -> Any:
        if any(getattr(request, name) for name in refused):
            raise ApiError(400, "Not here.")
        return start(service, request)

    monkeypatch.setattr(openai, "start_completion", refusing)
    found = look(sound, "logprobs")
    assert not found.failed(), found.findings("numbers: log probabilities")
    assert f"by {how} of /v1/completions" in found.checks["numbers: log probabilities"].note


def test_another_template(look: Look) -> None:
    with served(load(chat_template=GLM47)) as url:
        found = look(url, "prompt", "thinking")
    assert "prompt: tokens of known conversations" in found.failed()
    assert "'system' 1" in found.findings("prompt: tokens of known conversations")
    assert "0 more prompt tokens, not 4" in found.findings("prompt: tokens of the thinking switch")


class StuckOn(ChatTemplate):
    """Always lets the model think."""

    def encode(
        self,
        messages: Any,
        tools: Any = None,
        *,
        chat_template_kwargs: Any = None,
        limit: Limit | None = None,
    ) -> Prompt:
        return super().encode(messages, tools, limit=limit)


def test_thinking_stuck_on(look: Look) -> None:
    glm = load()
    chat = StuckOn.load(glm.folder, glm.tokenizer)
    with served(glm, chat=chat) as url:
        found = look(url, "prompt", "thinking")
    assert found.failed() == [
        "prompt: tokens of known conversations",
        "prompt: tokens of the thinking switch",
        "thinking: off",
    ]
    assert "enable_thinking false: reasoning_content" in found.findings("thinking: off")


def test_thoughts_in_the_content(look: Look, sound: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        conversation, "Parser", lambda tools, **given: Parser(tools, **given | {"thinking": False})
    )
    found = look(sound, "thinking")
    assert found.failed() == ["thinking: on", "thinking: cut off"]
    assert "<think> in content" in found.findings("thinking: on")


def test_a_router_bias_in_bf16(look: Look) -> None:
    glm = load()
    for layer in glm.model.layers:
        if layer.moe is not None:
            layer.moe.bias = layer.moe.bias.bfloat16().float()
    with served(glm) as url:
        found = look(url, "prompt", "thinking", "logprobs")
    assert found.failed() == ["numbers: log probabilities"]
    assert "a router bias rounded to BF16" in found.findings("numbers: log probabilities")


class Changing(Parser):
    """Sends the arguments of a call at its end, changed."""

    held = ""

    def change(self, value: Any) -> Any:
        raise NotImplementedError

    def _argue(self, fragment: str) -> None:
        self.held += fragment

    def _close_call(self, call: Any) -> None:
        self._argue(call.close())
        arguments = {key: self.change(value) for key, value in json.loads(self.held).items()}
        self._events.append(ToolCallArguments(self._calls, json.dumps(arguments)))
        self._calls, self._call, self.held = self._calls + 1, None, ""


class Stripping(Changing):
    def change(self, value: Any) -> Any:
        return value.strip() if isinstance(value, str) else value


class Quoting(Changing):
    def change(self, value: Any) -> Any:
        return value if isinstance(value, str) else json.dumps(value)


class Emptied(Changing):
    """Loses the arguments, but only of a stream: see `streams`."""

    def change(self, value: Any) -> Any:
        return "" if isinstance(value, str) else value


def test_values_that_are_stripped(look: Look, sound: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conversation, "Parser", Stripping)
    found = look(sound, "complete and typed", "as the model wrote them")
    assert found.failed() == ["tool calls: as the model wrote them"]
    assert "values are stripped" in found.findings("tool calls: as the model wrote them")


def test_integers_that_are_strings(look: Look, sound: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conversation, "Parser", Quoting)
    found = look(sound, "complete and typed")
    assert found.failed() == ["tool calls: complete and typed"]
    assert re.search(r"nights = '\d' \(declared as integer", found.findings(found.failed()[0]))


def test_arguments_lost_in_the_stream(
    look: Look, sound: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = conversation._choice

    def choice(request: Any, *rest: Any) -> Any:
        found = made(request, *rest)
        if request.stream:
            found.parser = Emptied(request.tools)
        return found

    monkeypatch.setattr(conversation, "_choice", choice)
    found = look(sound, "complete and typed", "streamed as unstreamed")
    assert found.failed() == ["tool calls: streamed as unstreamed"]
