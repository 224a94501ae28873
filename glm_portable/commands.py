"""The bodies of the commands that load a model, convert it or ask it."""

import json
import time
from pathlib import Path
from typing import Any

from rich.console import Console

from glm_portable import hub
from glm_portable.convert import Conversion
from glm_portable.evaluate import Answer, Ask, Call, Endpoint
from glm_portable.glm import GLM
from glm_portable.terminal import progress_bar


def run_convert(
    model: str,
    output: Path,
    *,
    quantization: str,
    shard_size: float,
    router_bias_from: Path | None,
    revision: str | None,
) -> int:
    """Convert with a progress bar; returns the exit code. shard_size: in GB. Raises UsageError."""
    conversion = Conversion(
        hub.resolve(model, revision),
        output,
        quantization,
        shard_bytes=int(shard_size * 1e9),
        router_bias_from=router_bias_from,
    )
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    begin = time.monotonic()
    try:
        with progress_bar("converting", console) as advance:
            kept = conversion.run(lambda count: advance(count, conversion.total_bytes))
    except KeyboardInterrupt:
        console.print("Stopped; the same command goes on from here.")
        return 130
    seconds, count = time.monotonic() - begin, len(conversion.files)
    known = f", {kept} of them kept from an earlier run" if kept else ""
    console.print(
        f"Wrote {output} ({quantization}): {conversion.total_bytes / 1e9:,.2f} GB in {count} "
        f"file{'s' if count > 1 else ''}{known}, {seconds:.1f} s",
        markup=False,
    )
    return 0


def ask_endpoint(url: str, model: str | None, api_key: str | None) -> Endpoint:
    """Questions for a server."""
    return Endpoint(url, model=model, api_key=api_key)


def ask_glm(glm: GLM) -> Ask:
    """Questions for a model in this process."""

    def ask(messages: Any, tools: Any, thinking: bool, max_tokens: int) -> Answer:
        answer = glm.generate(
            messages,
            tools=tools,
            chat_template_kwargs={"enable_thinking": thinking},
            temperature=0.0,
            max_tokens=max_tokens,
        )
        calls = tuple(Call(c.name, json.loads(c.arguments)) for c in answer.tool_calls)
        whole = calls and answer.finish_reason == "stop"
        finish = "tool_calls" if whole else answer.finish_reason
        return Answer(answer.content or "", answer.reasoning or "", calls, finish)

    return ask
