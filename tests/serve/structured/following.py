"""What a grammar allows, asked token by token."""

import json
from typing import Any

import numpy as np

from glm_portable.engine.grammar import Grammar, GrammarState, Vocabulary
from glm_portable.serve.chat import Format as Layout
from glm_portable.serve.errors import ApiError
from glm_portable.serve.structured import formats
from glm_portable.serve.structured.calls import Calls
from glm_portable.serve.structured.compiler import token_table
from glm_portable.serve.structured.formats import Format
from tests.serve.fake_engine import TOKENIZER

VOCABULARY = Vocabulary(token_table(TOKENIZER), TOKENIZER.encode)
EOS = TOKENIZER.eos_token_id


def allowed(state: GrammarState) -> set[int]:
    words_W = np.zeros(VOCABULARY.words, dtype=np.uint32)
    state.fill(words_W)
    assert state.failure is None
    bits = np.unpackbits(words_W.view(np.uint8), bitorder="little")
    return set(map(int, np.flatnonzero(bits)))


def follows(grammar: Grammar | None, text: str) -> bool:
    """Whether the whole text may be generated, and ended after it; by the longest tokens."""
    assert grammar is not None
    state, left = grammar.start(), text.encode()
    while left:
        pieces = {TOKENIZER.token_bytes(i): i for i in allowed(state) if i not in EOS}
        fitting = [piece for piece in pieces if left.startswith(piece)]
        if not fitting:
            return False
        piece = max(fitting, key=len)
        state.append(pieces[piece])
        left = left[len(piece) :]
    return set(EOS) <= allowed(state)


def of_format(format: Format) -> Grammar:
    from glm_portable.engine.grammar import lark_of_gbnf

    return VOCABULARY.compile(formats.lark(format, lark_of_gbnf))


def of_schema(schema: Any, strict: bool = False) -> Grammar:
    return of_format(Format("json_schema", "schema", schema, strict))


def of_arguments(parameters: Any, layout: Layout = "glm47") -> Grammar:
    """What follows the name of a strict tool."""
    function = {"name": "f", "strict": True, "parameters": parameters}
    calls = Calls([("tools[0]", {"type": "function", "function": function})], layout)
    return VOCABULARY.compile(f"start: rest_of_call\n{calls.rules}")


def arguments(layout: Layout = "glm47", **values: str) -> str:
    """The text of a call from its first argument to its end."""
    gap = "\n" if layout == "glm45" else ""
    pairs = values.items()
    return (
        "".join(
            f"<arg_key>{name}</arg_key>{gap}<arg_value>{value}</arg_value>{gap}"
            for name, value in pairs
        )
        + "</tool_call>"
    )


def error_of(format: Format) -> ApiError:
    try:
        formats.check_value(format)
        formats.lark(format, str)
    except ApiError as error:
        return error
    raise AssertionError(f"{json.dumps(format.value)[:200]} was accepted")
