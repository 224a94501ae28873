"""What a soak asks: each kind of request, and what must be true of its answer however it is told.

The answer given alone, before the load, is what the same request must say under load: all of them
are greedy or seeded. `key` is in every answer to a prompt and in no other's.
"""

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from glm_portable.bench.soak.client import Answer

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
_CITIES = ("Paris", "London", "Rome", "Berlin", "Madrid", "Tokyo", "Oslo", "Cairo")
_WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get the weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "description": "The city."}},
            "required": ["city"],
        },
    },
}
# Nothing for the model to waver about: what is a toss-up depends on what shares a step.
_SCHEMA = {
    "type": "object",
    "properties": {"answer": {"type": "integer"}, "unit": {"enum": ["none"]}},
    "required": ["answer", "unit"],
    "additionalProperties": False,
}
_RULES = (
    "You are a careful assistant of a small shop. Be brief, be kind, and never invent a price. "
    "Name the units of every number. If a question has two parts, answer both of them in order. "
)


@dataclass(frozen=True)
class Case:
    """One request. leave_after: a client that goes away after so many events."""

    kind: str
    path: str
    body: dict[str, Any]
    key: str = ""
    leave_after: int | None = None
    schema: bool = False

    def problem(self, answer: Answer) -> str | None:
        """What is wrong with an answer, whatever was said alone."""
        if answer.left:
            return None
        most = self.body["max_tokens"]
        if not 1 <= answer.tokens <= most:
            return f"{answer.tokens} tokens, where 1 to {most} were asked for"
        if answer.finish_reason == "length" and answer.tokens != most:
            return f"finish_reason length after {answer.tokens} of {most} tokens"
        if self.schema and answer.finish_reason != "length":
            return _breaks_schema(answer.text)
        return None


def _breaks_schema(text: str) -> str | None:
    try:
        value = json.loads(text)
    except ValueError:
        return f"no JSON, but {text[:60]!r}"
    if not isinstance(value, dict) or set(value) != {"answer", "unit"}:
        return f"JSON against its schema: {text[:60]!r}"
    if type(value["answer"]) is not int or value["unit"] != "none":
        return f"JSON against its schema: {text[:60]!r}"
    return None


@dataclass
class Maker:
    """Makes cases; the same ones again from the same seed."""

    model: str
    chooser: random.Random = field(default_factory=lambda: random.Random(1))

    def all(self, count: int) -> Iterator[Case]:
        """`count` cases of every kind."""
        for n in range(count):
            yield self._sum("stream", stream=True)
            yield self._sum("unstreamed")
            yield self._sum("short", max_tokens=1 + n % 7, stream=n % 2 == 0)
            yield self._sum("seeded", temperature=0.9, top_p=0.9, seed=n)
            yield self._sum("cancel", stream=True, leave_after=1 + n % 9, max_tokens=200)
            yield self._tools(n)
            yield self._schema()
            yield self._prefix(n)
            yield self._text(n)

    def _chat(self, kind: str, content: Any, key: str = "", **fields: Any) -> Case:
        leave_after, schema = fields.pop("leave_after", None), fields.pop("schema", False)
        messages = content if isinstance(content, list) else [_user(content)]
        usual = {"model": self.model, "messages": messages, "max_tokens": 120, "temperature": 0}
        return Case(kind, CHAT, usual | fields, key, leave_after, schema)

    def _sum(self, kind: str, **fields: Any) -> Case:
        key = f"{self.chooser.randrange(10, 100)} + {self.chooser.randrange(10, 100)}"
        return self._chat(kind, f"What is {key}?", key, **fields)

    def _tools(self, n: int) -> Case:
        city = self.chooser.choice(_CITIES)
        thinking = {"enable_thinking": n % 3 == 0}
        return self._chat(
            "tools", f"What is the weather in {city}?", city,
            tools=[_WEATHER], stream=n % 2 == 0, chat_template_kwargs=thinking,
        )  # fmt: skip

    def _schema(self) -> Case:
        key = f"{self.chooser.randrange(10, 100)} + {self.chooser.randrange(10, 100)}"
        form = {"name": "sum", "strict": True, "schema": _SCHEMA}
        return self._chat(
            "schema", f"What is {key}? Answer in JSON.", schema=True, stream=True,
            response_format={"type": "json_schema", "json_schema": form},
            chat_template_kwargs={"enable_thinking": False},
        )  # fmt: skip

    def _prefix(self, n: int) -> Case:
        """A long beginning that many share, so that the prefix cache has work."""
        key = f"{self.chooser.randrange(10, 100)} + {self.chooser.randrange(10, 100)}"
        rules = {"role": "system", "content": _RULES * (1 + n % 4)}
        return self._chat("prefix", [rules, _user(f"What is {key}?")], stream=n % 2 == 0)

    def _text(self, n: int) -> Case:
        body = {
            "model": self.model, "prompt": f"{n}, {n + 1}, {n + 2},", "max_tokens": 5 + n % 40,
            "temperature": 0, "stream": n % 2 == 0, "ignore_eos": n % 3 == 0,
        }  # fmt: skip
        return Case("text", COMPLETIONS, body)


def _user(content: str) -> dict[str, str]:
    return {"role": "user", "content": content}
