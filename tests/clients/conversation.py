"""What the clients talk about with the pocket model: things that it can do."""

from typing import Annotated, Any

from pydantic import BaseModel, Field

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
PERSON_QUESTION = "Give me JSON with the keys name and age. Text: Anna is 41 years old."
QUIET = {"chat_template_kwargs": {"enable_thinking": False}}


class Person(BaseModel):
    """A person; bounded, because a model this small may not find the end of a string."""

    name: Annotated[str, Field(max_length=20)]
    age: Annotated[int, Field(ge=0, le=150)]


def asking(text: str) -> list[Any]:
    return [{"role": "user", "content": text}]
