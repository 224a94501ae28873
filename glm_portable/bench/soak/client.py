"""One request of any kind, streamed or not, and its answer in one form."""

import json
from dataclasses import dataclass, field
from typing import Any

import httpx


class Failed(Exception):
    """The request failed, or its answer is not whole; one sentence."""


@dataclass
class Answer:
    """tools: name and arguments of each call. pieces: events that carried something."""

    text: str = ""
    reasoning: str = ""
    tools: list[tuple[str, str]] = field(default_factory=list)
    finish_reason: str | None = None
    tokens: int = 0
    pieces: int = 0
    left: bool = False

    @property
    def said(self) -> tuple[str, str, tuple[tuple[str, str], ...], str | None]:
        """What must be the same again."""
        return self.text, self.reasoning, tuple(self.tools), self.finish_reason


async def ask(
    http: httpx.AsyncClient, path: str, body: dict[str, Any], leave_after: int | None = None
) -> Answer:
    """leave_after: close the connection after so many events. Raises Failed."""
    try:
        if body.get("stream"):
            return await _stream(http, path, body, leave_after)
        response = await http.post(path, json=body)
        if response.status_code != 200:
            raise Failed(_reason(response))
        return _whole(response.json())
    except (httpx.HTTPError, ValueError, KeyError) as error:
        raise Failed(f"{type(error).__name__}: {error}") from None


async def _stream(
    http: httpx.AsyncClient, path: str, body: dict[str, Any], leave_after: int | None
) -> Answer:
    answer, done = Answer(), False
    asked = body | {"stream_options": {"include_usage": True}}
    async with http.stream("POST", path, json=asked) as response:
        if response.status_code != 200:
            await response.aread()
            raise Failed(_reason(response))
        async for line in response.aiter_lines():
            if line == "data: [DONE]":
                done = True
            elif line.startswith("data:"):
                _take(answer, json.loads(line[5:]))
            if leave_after is not None and answer.pieces >= leave_after:
                answer.left = True
                return answer
    if not done or answer.finish_reason is None:
        raise Failed("the stream ended without [DONE] or finish_reason")
    return answer


def _take(answer: Answer, chunk: dict[str, Any]) -> None:
    if "error" in chunk:
        raise Failed(f"in the stream: {chunk['error']['message']}")
    for choice in chunk["choices"]:
        delta = choice.get("delta") or {}
        text = delta.get("content") or choice.get("text") or ""
        reasoning = delta.get("reasoning_content") or ""
        answer.text, answer.reasoning = answer.text + text, answer.reasoning + reasoning
        for call in delta.get("tool_calls") or []:
            name, arguments = call["function"].get("name"), call["function"].get("arguments")
            if name:
                answer.tools.append((name, ""))
            last = answer.tools[-1]
            answer.tools[-1] = (last[0], last[1] + (arguments or ""))
        answer.pieces += bool(text or reasoning or delta.get("tool_calls"))
        answer.finish_reason = choice["finish_reason"] or answer.finish_reason
    if chunk.get("usage"):
        answer.tokens = chunk["usage"]["completion_tokens"]


def _whole(body: dict[str, Any]) -> Answer:
    [choice] = body["choices"]
    message = choice.get("message") or {"content": choice.get("text")}
    calls = [call["function"] for call in message.get("tool_calls") or []]
    return Answer(
        text=message.get("content") or "",
        reasoning=message.get("reasoning_content") or "",
        tools=[(call["name"], call["arguments"]) for call in calls],
        finish_reason=choice["finish_reason"],
        tokens=body["usage"]["completion_tokens"],
    )


def _reason(response: httpx.Response) -> str:
    return f"status {response.status_code}: {' '.join(response.text.split())[:200]}"
