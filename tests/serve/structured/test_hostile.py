"""Grammars that would stall or end a server: refused, while everybody else's tokens go on."""

import asyncio
from typing import Any

import pytest

from glm_portable.engine import grammar
from glm_portable.engine.grammar import GrammarError
from glm_portable.serve.errors import ApiError
from glm_portable.serve.structured.compiler import Compiler, Wanted, token_table
from glm_portable.serve.structured.probe import Probe
from tests.serve.fake_engine import TOKENIZER


@pytest.fixture(scope="module")
def compiler() -> Compiler:
    """It has little time: the ordinary grammars need a hundredth of it."""
    return Compiler(TOKENIZER, cpu_s=0.5)


def compiled(compiler: Compiler, text: str) -> grammar.Grammar:
    return asyncio.run(compiler.compile(lambda: Wanted(text, "field")))


def schema(value: Any) -> str:
    return f"start: {grammar.json_value(value)}"


def patterns(count: int) -> list[dict[str, str]]:
    return [{"type": "string", "pattern": f"(a|b)*a(a|b){{{n}}}"} for n in range(5, 5 + count)]


def doubling(rule: str) -> str:
    """Each name stands for twice the one after it."""
    names = [rule * (n + 1) for n in range(41)]
    pairs = zip(names, names[1:], strict=False)
    return "\n".join([f"{a}: {b} {b}" for a, b in pairs] + [f'{names[-1]}: "a"'])


DIVISORS = (9973, 9967, 9949)
BOMBS = {
    "intersection": schema({"allOf": patterns(20)}),
    "negation": "start: A\nA: ~/(.*a.{12}.*)/ & ~/(.*b.{13}.*)/ & /.*c.{14}/",
    "repeats of repeats": "start: /(a{1000}){1000}/",
    "exponential union": schema({
        "allOf": [
            {"anyOf": [{"properties": {f"a{i}_{j}": {"type": "null"}}} for j in range(4)]}
            for i in range(12)
        ]
    }),
    "divisors": schema({"allOf": [{"type": "integer", "multipleOf": n} for n in DIVISORS]}),
    "doubling terminals": f"start: A\n{doubling('A')}",
    "doubling rules": f"start: a\n{doubling('a')}",
    "counted": 'start: "a"{1000000000}',
    "no text": r"start: /[^\s\S]/",
    "circle": schema({"$ref": "#"}),
    "two circles": schema({
        "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}},
        "$ref": "#/$defs/a",
    }),
    "deep": "start: " + "(" * 3000 + '"a"' + ")" * 3000,
    "deep regex": f"start: /{'(' * 5000}a{')' * 5000}/",
    "contradiction": schema({"type": "integer", "minimum": 5, "maximum": 3}),
    "backreference": r"start: /(a)\1/",
    "lookahead": "start: /(?=a)b/",
    "unclosed": "start: /([/",
    "overlap": schema({"patternProperties": {"a.*": {"type": "null"}, ".*b": {"type": "null"}}}),
}  # fmt: skip


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_refused_in_words_for_a_client(compiler: Compiler, name: str) -> None:
    with pytest.raises(ApiError) as caught:
        compiled(compiler, BOMBS[name])
    error = caught.value
    assert (error.status, error.param) == (400, "field")
    assert error.message.startswith("field ") and len(error.message) < 200
    for internal in ("lark", "lexer", "fuel", "llguidance", "panic", "-->", "%json"):
        assert internal not in error.message


def test_after_a_bomb_the_next_grammar_compiles(compiler: Compiler) -> None:
    with pytest.raises(ApiError):
        compiled(compiler, BOMBS["intersection"] + " ")
    assert compiled(compiler, 'start: "a"').vocabulary.size == TOKENIZER.vocab_size


def test_a_probe_that_was_ended_starts_again() -> None:
    probe = Probe(token_table(TOKENIZER))
    probe.check('start: "a"')
    process = probe._process
    assert process is not None
    process.kill()  # as the kernel does with SIGPROF, or an allocation that fails with SIGABRT
    with pytest.raises(GrammarError, match="too large or too complex") as caught:
        probe.check('start: "b"')
    assert "SIGKILL" in caught.value.reason
    probe.check('start: "b"')
    assert probe._process is not process
