"""What the clients talk about with the pocket model: things that it can do."""

from typing import Any

MODEL = "glm-pocket"
SUM = "What is 17 + 25?"
SUM_ANSWER = "17 + 25 = 42"
WEATHER_QUESTION = "What is the weather in Paris?"
DESCRIPTION = "Get the weather of a city."
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"city": {"type": "string", "description": "The city."}},
    "required": ["city"],
}
WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {"name": "get_weather", "description": DESCRIPTION, "parameters": SCHEMA},
}
RESULT = '{"city": "Paris", "weather": "sunny", "temperature": 21}'
QUIET = {"chat_template_kwargs": {"enable_thinking": False}}


def asking(text: str) -> list[Any]:
    return [{"role": "user", "content": text}]
