"""Facts of a sentence written as JSON, in the order that the question asks for."""

import json
from collections.abc import Callable
from typing import Any

from glm_portable.tasks.chat import Turns, assistant, spoken, user
from glm_portable.tasks.draw import Draw

# How the sentence says each field.
SAID = {
    "age": "is {} years old",
    "city": "lives in {}",
    "job": "works as a {}",
    "pet": "has a {}",
    "married": "is {}",
    "hobbies": "likes {}",
}
JOBS = ["baker", "farmer", "doctor", "teacher", "pilot", "cook"]
PETS = ["cat", "dog", "horse", "fish", "bird"]

Field = tuple[str, str, Callable[[Draw], Any]]  # key, JSON type, how to draw it
FIELDS: list[Field] = [
    ("name", "string", lambda draw: draw.name()),
    ("age", "integer", lambda draw: draw.number(2)),
    ("city", "string", lambda draw: draw.city()),
    ("job", "string", lambda draw: draw.choice(JOBS)),
    ("pet", "string", lambda draw: draw.choice(PETS)),
    ("married", "boolean", lambda draw: draw.chance(0.5)),
    ("hobbies", "array", lambda draw: draw.several(draw.thing, 2)),
]


def structured(draw: Draw, thinking: bool) -> tuple[str, Turns]:
    """("json", a question with a list of keys or a JSON schema, and the object)."""
    fields = [FIELDS[0], *draw.random.sample(FIELDS[1:], draw.integer(1, 4))]
    values = {key: make(draw) for key, _, make in fields}
    text = _sentence(draw, fields, values)
    order = draw.random.sample(fields, len(fields))
    keys = spoken([key for key, _, _ in order])
    if draw.chance(0.5):
        question = f"Give me JSON with the keys {keys}. Text: {text}"
    else:
        schema = {"type": "object", "properties": {key: {"type": kind} for key, kind, _ in order}}
        question = f"Answer in JSON with this schema: {json.dumps(schema)}\n{text}"
    answer = json.dumps({key: values[key] for key, _, _ in order}, ensure_ascii=False)
    return "json", [user(question), assistant(answer, f"Keys: {keys}." if thinking else "")]


def _sentence(draw: Draw, fields: list[Field], values: dict[str, Any]) -> str:
    rest = fields[1:]
    parts = [
        SAID[key].format(_say(values[key])) for key, _, _ in draw.random.sample(rest, len(rest))
    ]
    if draw.chance(0.3):
        unasked = [field for field in FIELDS[1:5] if field[0] not in values]
        if unasked:
            key, _, make = draw.choice(unasked)
            parts.insert(draw.integer(0, len(parts)), SAID[key].format(make(draw)))
    return f"{values['name']} {' and '.join(parts)}."


def _say(value: Any) -> str:
    if isinstance(value, bool):
        return "married" if value else "not married"
    return " and ".join(value) if isinstance(value, list) else str(value)
