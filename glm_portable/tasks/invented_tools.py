"""Tools put together from a verb, a noun and drawn parameters, in endless supply."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from glm_portable.tasks.chat import Tool
from glm_portable.tasks.draw import Draw
from glm_portable.tasks.pools import (
    PARAMETERS,
    PREFIXES,
    RARE_VERBS,
    THINGS,
    TOOL_NOUNS,
    VERBS,
)
from glm_portable.tasks.tool_kinds import Arguments, declare, say, schema

KINDS = ["string", "string", "string", "integer", "integer", "number", "boolean", "array"]


@dataclass(frozen=True)
class Nested:
    """A parameter that is an object of one string and one integer."""

    key: str
    text: str
    number: str


@dataclass(frozen=True)
class InventedTool:
    """A verb applied to a noun. `kinds`: JSON type of each parameter but the nested one."""

    verb: str
    noun: str
    kinds: dict[str, str]
    nested: Nested | None
    required: list[str]
    declaration: Tool

    @classmethod
    def drawn(cls, draw: Draw) -> "InventedTool":
        verb, noun = _verb(draw), _noun(draw)
        described = draw.chance(0.3)
        name = f"{verb}_{noun}" if draw.chance(0.9) else verb + noun.capitalize()
        held_out = draw.test and draw.chance(0.6)
        kinds = _parameters(draw)
        properties = {
            key: schema(kind, f"the {key} of the {noun}" if described else None)
            for key, kind in kinds.items()
        }
        nested = _nested(draw, held_out) if draw.chance(0.1) else None
        if nested is not None:
            inner = {nested.text: {"type": "string"}, nested.number: {"type": "integer"}}
            properties[nested.key] = {"type": "object", "properties": inner}
            for key in inner:
                kinds.pop(key, None)
                properties.pop(key, None)
        required = [key for key in kinds if draw.chance(0.7)]
        description = _description(draw, verb, noun)
        declaration = declare(name, description, properties, required)
        return cls(verb, noun, kinds, nested, required, declaration)

    @property
    def name(self) -> str:
        return str(self.declaration["function"]["name"])

    def say(self, key: str, value: Any) -> str:
        if isinstance(value, dict):
            return " ".join(map(str, value.values()))
        return say(self.kinds.get(key, "string"), value)

    def ask(self, draw: Draw) -> tuple[str, Arguments]:
        used = [key for key in self.kinds if key in self.required or draw.chance(0.6)]
        arguments: Arguments = {key: _value(draw, self.kinds[key]) for key in used}
        said = [(key, self.say(key, value)) for key, value in arguments.items()]
        if draw.chance(0.4):
            draw.random.shuffle(said)
        if self.nested is not None:
            text, number = _value(draw, "string"), draw.integer(1, 99)
            arguments[self.nested.key] = {self.nested.text: text, self.nested.number: number}
            inner = f"{self.nested.text} {text} and {self.nested.number} {number}"
            said.append((self.nested.key, inner))
        return self._sentence(draw.integer(0, 4), said), arguments

    def _sentence(self, style: int, said: list[tuple[str, str]]) -> str:
        verb, noun = self.verb, self.noun
        listed = ", ".join(f"{key} {text}" for key, text in said)
        with_listed = f" with {listed}" if said else ""
        if style == 0:
            return f"{verb.capitalize()} a {noun}{with_listed}."
        if style == 1:
            return f"Please {verb} the {noun}{', ' if said else ''}{listed}."
        if style == 2:
            told = "".join(f" The {key} is {text}." for key, text in said)
            return f"I want to {verb} a {noun}.{told}"
        if style == 3:
            assigned = ", ".join(f"{key}={text}" for key, text in said)
            return f"Can you {verb} a {noun}?" + (f" Use {assigned}." if said else "")
        return f"Use {self.name}{with_listed}."

    def result(self, draw: Draw, arguments: Arguments) -> tuple[dict[str, Any], str]:
        kind = draw.integer(0, 3)
        if kind == 0:
            status = draw.choice(["ok", "done", "confirmed", "failed", "pending"])
            failed = f"Sorry, the {self.noun} failed."
            said = failed if status == "failed" else f"The {self.noun} is {status}."
            return {"status": status}, said
        if kind == 1:
            number = draw.number(draw.integer(3, 4))
            return {"id": number, "status": "ok"}, f"Done. The {self.noun} id is {number}."
        if kind == 2:
            key = draw.choice(["price", "count", "total", "score", "distance"])
            value: Any = draw.number(draw.integer(2, 3))
        else:
            key = draw.choice(["owner", "city", "color", "title"])
            value = draw.choice([draw.name, draw.thing, draw.city])()
        return {key: value}, f"The {key} is {value}."


def _verb(draw: Draw) -> str:
    if draw.chance(0.7):
        return draw.choice(VERBS)
    return draw.pick(RARE_VERBS) if draw.chance(0.7) else draw.word(2, 2, 0)


def _noun(draw: Draw) -> str:
    share = draw.random.random()
    if share < 0.45:
        return draw.choice(TOOL_NOUNS.test if draw.test else TOOL_NOUNS.train)
    return draw.word(2, 3) if share < 0.75 else draw.pick(THINGS)


def _parameters(draw: Draw) -> dict[str, str]:
    count = draw.integer(0, 3) if draw.chance(0.15) else draw.integer(1, 3)
    kinds: dict[str, str] = {}
    for kind in [draw.choice(KINDS) for _ in range(count)]:
        kinds.setdefault(_key(draw, kind), kind)
    return kinds


def _words(kind: str, held_out: bool) -> list[str]:
    return PARAMETERS[kind].test if held_out else PARAMETERS[kind].train


def _key(draw: Draw, kind: str) -> str:
    base = draw.choice(_words(kind, draw.test and draw.chance(0.6)))
    share = draw.random.random()
    if share < 0.55:
        return base
    if share < 0.75:
        return f"{draw.pick(PREFIXES)}_{base}"
    return draw.word(2, 3) if share < 0.88 else draw.pick(THINGS)


def _nested(draw: Draw, held_out: bool) -> Nested:
    key = draw.choice(["address", "options", "target", "config"])
    text = draw.choice(_words("string", held_out))
    return Nested(key, text, draw.choice(_words("integer", held_out)))


def _description(draw: Draw, verb: str, noun: str) -> str:
    if not draw.chance(0.7):
        return f"{verb.capitalize()} {noun}."
    phrases = [f"{verb.capitalize()} a {noun}.", f"{verb.capitalize()} the {noun}."]
    return draw.choice([*phrases, f"Use this to {verb} a {noun}."])


def _value(draw: Draw, kind: str) -> Any:
    if kind == "integer":
        return draw.integer(1, 99) if draw.chance(0.8) else draw.number(3)
    if kind == "number":
        return draw.integer(1, 99) + draw.choice([0.5, 0.25, 0.1, 0.75, 0.2, 0.9, 0.3])
    if kind == "boolean":
        return draw.chance(0.5)
    if kind == "array":
        return draw.several(draw.thing, draw.integer(2, 3))
    if draw.chance(0.85):
        makers: list[Callable[[], str]] = [draw.thing, draw.name, draw.city, draw.word]
        return draw.choice(makers)()
    return f"{draw.thing()} {draw.thing()}"
