"""How an evaluation asks: one protocol, and its form for a server of the OpenAI API."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol, Self

import httpx

from glm_portable.errors import UsageError
from glm_portable.tasks import Message, Tool


@dataclass(frozen=True)
class Call:
    """A tool call; arguments as parsed JSON, or the text itself where it is no JSON."""

    name: str
    arguments: Any


@dataclass(frozen=True)
class Answer:
    """What the model said. finish_reason: as in OpenAI's API."""

    content: str
    reasoning: str = ""
    tool_calls: tuple[Call, ...] = ()
    finish_reason: str = "stop"

    @classmethod
    def from_message(cls, message: dict[str, Any], finish_reason: str | None) -> "Answer":
        """From an assistant message, whose thoughts are in `reasoning_content` or `reasoning`."""
        reasoning = message.get("reasoning_content") or message.get("reasoning") or ""
        calls = [call["function"] for call in message.get("tool_calls") or []]
        parsed = tuple(Call(call["name"], _parsed(call["arguments"])) for call in calls)
        return cls(message.get("content") or "", reasoning, parsed, finish_reason or "")


def _parsed(arguments: Any) -> Any:
    if not isinstance(arguments, str):
        return arguments
    try:
        return json.loads(arguments)
    except json.JSONDecodeError:
        return arguments


class Ask(Protocol):
    """Greedily answers a chat. Called from several threads at once."""

    def __call__(
        self,
        messages: Sequence[Message],
        tools: Sequence[Tool] | None,
        thinking: bool,
        max_tokens: int,
    ) -> Answer: ...


class Endpoint:
    """Asks the server at `url` (with or without the /v1), which has to serve a GLM."""

    def __init__(
        self,
        url: str,
        *,
        model: str | None = None,
        api_key: str | None = None,
        timeout: float = 600.0,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        base = url.rstrip("/").removesuffix("/v1")
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._client = httpx.Client(
            base_url=base, headers=headers, timeout=timeout, transport=transport
        )
        self.url = base
        self.model = model or self._only_model()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._client.close()

    def __call__(
        self,
        messages: Sequence[Message],
        tools: Sequence[Tool] | None,
        thinking: bool,
        max_tokens: int,
    ) -> Answer:
        body: dict[str, Any] = {
            "model": self.model,
            "messages": list(messages),
            "temperature": 0,
            "max_tokens": max_tokens,
            "chat_template_kwargs": {"enable_thinking": thinking},
        }
        if tools:
            body["tools"] = list(tools)
        choice = self._request("POST", "/v1/chat/completions", body)["choices"][0]
        return Answer.from_message(choice["message"], choice["finish_reason"])

    def _only_model(self) -> str:
        return str(self._request("GET", "/v1/models")["data"][0]["id"])

    def _request(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        try:
            response = self._client.request(method, path, json=body)
        except httpx.HTTPError as error:
            raise UsageError(
                f"{self.url}{path} did not answer ({error}): check the address and the server."
            ) from error
        if response.status_code != 200:
            raise UsageError(
                f"{self.url}{path} answered {response.status_code}: {response.text[:300]}"
            )
        return response.json()
