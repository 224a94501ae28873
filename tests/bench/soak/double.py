"""A server in this process whose answers are right until a test says otherwise."""

import json
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import httpx

Body = dict[str, Any]


@dataclass
class Double:
    """spoil: changes the answer to a request, from the number `after` on; see `Reply`."""

    spoil: Callable[["Reply", Body], None] = lambda reply, body: None
    after: int = 0
    metrics: str | None = (
        '# HELP x y\nvllm:num_requests_running{engine="0"} 0.0\nvllm:kv_cache_usage_perc 0\n'
    )
    asked: list[Body] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def client(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(
            transport=httpx.MockTransport(self.handle), base_url="http://double"
        )

    def handle(self, request: httpx.Request) -> httpx.Response:
        if request.url.path == "/metrics":
            return httpx.Response(404 if self.metrics is None else 200, text=self.metrics or "")
        body = json.loads(request.content)
        with self.lock:
            self.asked.append(body)
            number = len(self.asked)
        reply = Reply.right(body)
        if number > self.after:
            self.spoil(reply, body)
        return reply.response(bool(body.get("stream")))


@dataclass
class Reply:
    """What the double is about to answer."""

    text: str
    tokens: int
    finish_reason: str = "stop"
    tool: tuple[str, str] | None = None
    status: int = 200
    done: bool = True
    error: str | None = None

    @classmethod
    def right(cls, body: Body) -> "Reply":
        prompt = body.get("prompt") or body["messages"][-1]["content"]
        if "response_format" in body:
            return cls('{"answer": 7, "unit": "none"}', min(9, body["max_tokens"]))
        tool = None
        if "tools" in body:
            tool = ("get_weather", json.dumps({"city": prompt.split()[-1][:-1]}))
        most = body["max_tokens"]
        whole = most >= 4
        return cls(
            f"You asked: {prompt}", 4 if whole else most, "stop" if whole else "length", tool
        )

    def response(self, stream: bool) -> httpx.Response:
        if self.status != 200:
            return httpx.Response(self.status, json={"error": {"message": "no"}})
        function = self.tool and {"name": self.tool[0], "arguments": self.tool[1]}
        calls = [{"index": 0, "id": "c", "function": function}] if function else None
        usage = {"completion_tokens": self.tokens}
        if not stream:
            message = {"content": self.text, "tool_calls": calls}
            choice = {"message": message, "text": self.text, "finish_reason": self.finish_reason}
            return httpx.Response(200, json={"choices": [choice], "usage": usage})
        chunks: list[Body] = [
            self._chunk(piece) for piece in (self.text[:9], self.text[9:]) if piece
        ]
        if calls:
            chunks.append({"choices": [{"delta": {"tool_calls": calls}, "finish_reason": None}]})
        if self.error:
            chunks.append({"error": {"message": self.error}})
        chunks.append({"choices": [{"delta": {}, "finish_reason": self.finish_reason}]})
        chunks.append({"choices": [], "usage": usage})
        lines = [f"data: {json.dumps(chunk)}\n\n" for chunk in chunks]
        return httpx.Response(200, text="".join(lines) + ("data: [DONE]\n\n" if self.done else ""))

    @staticmethod
    def _chunk(piece: str) -> Body:
        return {"choices": [{"delta": {"content": piece}, "text": piece, "finish_reason": None}]}
