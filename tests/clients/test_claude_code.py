"""Claude Code itself, without a terminal, as its Agent SDK starts it.

Its system prompt and tools are some 30,000 tokens, more than the pocket model's window, so it gets
none or a tool of the test. It samples, from a prompt that the pocket model never saw the like of:
the tests are about what arrives, not about what it says.
"""

import asyncio
from pathlib import Path
from typing import Any

from claude_agent_sdk import (
    ClaudeAgentOptions,
    ClaudeSDKClient,
    ResultMessage,
    SystemMessage,
    create_sdk_mcp_server,
    tool,
)

from tests.clients.conversation import DESCRIPTION, MODEL, RESULT, SCHEMA, SUM, WEATHER_QUESTION
from tests.clients.server import Server

CLIENT = "claude-agent-sdk"
TOOL = "mcp__weather__get_weather"


def options(server: Server, home: Path, **more: Any) -> ClaudeAgentOptions:
    """No settings but these, and no calls of other hosts."""
    environment = {
        "ANTHROPIC_BASE_URL": server.url,
        "ANTHROPIC_AUTH_TOKEN": "none",
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
        "CLAUDE_CODE_MAX_OUTPUT_TOKENS": "256",
        "CLAUDE_CONFIG_DIR": str(home),
        "DISABLE_TELEMETRY": "1",
    }
    short: dict[str, Any] = {"system_prompt": "", "tools": []}
    return ClaudeAgentOptions(
        model=MODEL, setting_sources=[], env=environment, cwd=home, **short | more
    )


def ask(settings: ClaudeAgentOptions, *questions: str) -> tuple[list[str], list[ResultMessage]]:
    """The tools that it has, and what it ends with, question by question."""

    async def conversation() -> tuple[list[str], list[ResultMessage]]:
        tools, results = list[str](), list[ResultMessage]()
        async with ClaudeSDKClient(settings) as client:
            for question in questions:
                await client.query(question)
                async for message in client.receive_response():
                    if isinstance(message, ResultMessage):
                        results.append(message)
                    elif isinstance(message, SystemMessage) and message.subtype == "init":
                        tools = message.data["tools"]
        return tools, results

    return asyncio.run(conversation())


def test_a_conversation(server: Server, tmp_path: Path) -> None:
    """The second question goes out with the first answer and its thinking."""
    _, results = ask(options(server, tmp_path), SUM, SUM)
    assert len(results) == 2
    for result in results:
        assert not result.is_error and result.result, result
        assert result.stop_reason == "end_turn"
        assert result.usage and result.usage["output_tokens"] > 0


def test_with_a_tool(server: Server, tmp_path: Path) -> None:
    @tool("get_weather", DESCRIPTION, SCHEMA)
    async def get_weather(arguments: dict[str, Any]) -> dict[str, Any]:
        return {"content": [{"type": "text", "text": RESULT}]}

    weather = create_sdk_mcp_server("weather", tools=[get_weather])
    more: dict[str, Any] = {"mcp_servers": {"weather": weather}, "allowed_tools": [TOOL]}
    tools, (result,) = ask(options(server, tmp_path, max_turns=4, **more), WEATHER_QUESTION)
    assert tools == [TOOL]
    assert not result.is_error and result.result, result


def test_a_prompt_over_the_window(server: Server, tmp_path: Path) -> None:
    its_own = {"type": "preset", "preset": "claude_code"}
    _, (result,) = ask(options(server, tmp_path, system_prompt=its_own, tools=its_own), SUM)
    assert result.is_error and "maximum context length" in (result.result or "")
