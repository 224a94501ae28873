"""Tools that a chat declares: everyday ones, renamed at times, and invented ones."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from glm_portable.tasks import everyday
from glm_portable.tasks.chat import Tool
from glm_portable.tasks.draw import Draw
from glm_portable.tasks.everyday import Everyday, Source
from glm_portable.tasks.pools import RARE_VERBS, VERBS

Arguments = dict[str, Any]


def declare(name: str, description: str, properties: dict[str, Any], required: list[str]) -> Tool:
    """A tool as OpenAI's API declares it."""
    parameters = {"type": "object", "properties": properties, "required": required}
    function = {"name": name, "description": description, "parameters": parameters}
    return {"type": "function", "function": function}


def schema(kind: str, description: str | None) -> dict[str, Any]:
    """JSON schema of one parameter."""
    found: dict[str, Any] = {"type": kind}
    if kind == "array":
        found["items"] = {"type": "string"}
    return found if description is None else {**found, "description": description}


def say(kind: str, value: Any) -> str:
    """A value of a JSON type in words."""
    if kind == "boolean":
        return "true" if value else "false"
    if kind == "array":
        return f"{', '.join(value[:-1])} and {value[-1]}"
    return str(value)


@dataclass(frozen=True)
class EverydayTool:
    """One of the everyday tools; `origin` is its name before it was renamed."""

    origin: str
    tool: Everyday
    declaration: Tool

    @classmethod
    def drawn(cls, draw: Draw) -> "EverydayTool":
        original = draw.choice(everyday.TEST if draw.test else everyday.TRAIN)
        described = draw.chance(0.3)
        tool = _rename_parameters(draw, replace(original, name=_rename(draw, original.name)))
        properties = {
            key: schema(kind, f"the {key}" if described else None)
            for key, (kind, _) in tool.parameters.items()
        }
        for key, (_, source) in tool.parameters.items():
            if isinstance(source, list) and draw.chance(0.5):
                properties[key]["enum"] = source
        declaration = declare(tool.name, tool.description, properties, tool.required)
        return cls(original.name, tool, declaration)

    @property
    def name(self) -> str:
        return self.tool.name

    def say(self, key: str, value: Any) -> str:
        return say(self.tool.parameters.get(key, ("string", None))[0], value)

    def ask(self, draw: Draw) -> tuple[str, Arguments]:
        while True:
            sentence, used = draw.choice(self.tool.requests)
            values = {key: _value(draw, *self.tool.parameters[key]) for key in used}
            # Two equal values would leave open which argument is which.
            if len(set(map(str, values.values()))) == len(values):
                break
        text = sentence.format(**{key: self.say(key, value) for key, value in values.items()})
        return text, {key: values[key] for key in self.tool.parameters if key in values}

    def result(self, draw: Draw, arguments: Arguments) -> tuple[dict[str, Any], str]:
        result = {
            key: draw.integer(*source) if isinstance(source, tuple) else draw.choice(source)
            for key, source in self.tool.result.items()
        }
        known: Mapping[str, Any] = {**arguments, **result}
        said = {key: self.say(key, value) for key, value in known.items()}
        return result, self.tool.answer.format(**said)


def _value(draw: Draw, kind: str, source: Source) -> Any:
    if kind == "boolean":
        return draw.chance(0.5)
    if kind == "array":
        return draw.several(draw.thing, draw.integer(2, 3))
    if isinstance(source, tuple):
        whole = draw.integer(*source)
        fraction = kind == "number" and draw.chance(0.5)
        return whole + draw.choice([0.5, 0.25, 0.1]) if fraction else whole
    return draw.choice(source) if isinstance(source, list) else _text(draw, source)


def _text(draw: Draw, source: str | None) -> str:
    if source == "phone":
        return f"{draw.number(3)}-{draw.number(4)}"
    if source == "symbol":
        return draw.word(2, 2).upper()[:4]
    return {"city": draw.city, "name": draw.name}.get(source or "", draw.thing)()


def _rename(draw: Draw, name: str) -> str:
    """So that the model reads the declared name instead of recalling the usual one."""
    if not draw.chance(0.45):
        return name
    tail = name.split("_", 1)[-1]
    way = draw.integer(0, 5)
    if way == 0:
        return f"{draw.choice(VERBS + RARE_VERBS.train)}_{tail}"
    if way == 1:
        return tail
    if way == 2:
        return f"{name}_{draw.choice(['info', 'tool', 'api', 'data', 'now'])}"
    if way == 3:
        return f"{tail}_{draw.choice(['lookup', 'service', 'request'])}"
    if way == 4:
        return f"{draw.word(2, 2, 0)}_{tail}"
    return f"{draw.choice(['my', 'api', 'local'])}_{name}"


SYNONYMS = {
    "city": ["city", "city", "location", "place", "town", "city_name"],
    "unit": ["unit", "units", "scale"],
    "to": ["to", "recipient", "receiver"],
    "subject": ["subject", "topic"],
    "hour": ["hour", "time"],
    "author": ["author", "writer"],
    "limit": ["limit", "max_results", "count"],
    "origin": ["origin", "from_city", "start"],
    "destination": ["destination", "to_city", "end"],
    "title": ["title", "song"],
    "name": ["name", "full_name"],
    "symbol": ["symbol", "ticker"],
    "room": ["room", "area"],
}


def _rename_parameters(draw: Draw, tool: Everyday) -> Everyday:
    if not draw.chance(0.4):
        return tool
    new = {key: _new_key(draw, key) for key in tool.parameters}
    if len(set(new.values())) < len(new) or any(key in tool.result for key in new.values()):
        return tool

    def rewritten(text: str) -> str:
        return re.sub(r"\{(\w+)\}", lambda found: f"{{{new.get(found[1], found[1])}}}", text)

    return replace(
        tool,
        parameters={new[key]: value for key, value in tool.parameters.items()},
        required=[new[key] for key in tool.required],
        requests=[(rewritten(text), [new[key] for key in used]) for text, used in tool.requests],
        answer=rewritten(tool.answer),
    )


def _new_key(draw: Draw, key: str) -> str:
    if key in SYNONYMS and draw.chance(0.6):
        return draw.choice(SYNONYMS[key])
    return draw.word(2, 2, 0) if draw.chance(0.3) else key
