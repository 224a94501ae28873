"""What schemathesis loads beside its own checks: see test_schemathesis.py."""

import re
from typing import Any

import schemathesis

LIMITS = {
    "/v1/chat/completions": "max_completion_tokens",
    "/v1/completions": "max_tokens",
    "/v1/responses": "max_output_tokens",
}
"""The field that limits an answer's tokens, where an endpoint does not require one."""


@schemathesis.hook
def before_call(
    context: schemathesis.HookContext, case: schemathesis.Case, kwargs: dict[str, Any]
) -> None:
    """Ask for short answers in requests that do not say how long theirs may be."""
    name, body = LIMITS.get(case.path), case.body
    if name is not None and isinstance(body, dict):
        if all(body.get(field) is None for field in (name, "max_tokens", "min_tokens")):
            case.body = body | {name: 2}


CANNOT_BE_SAID = (
    # How many tokens a text has, its tokenizer knows.
    r"This model's maximum context length is ",
    # How many ids there are depends on the served model.
    r".* but the vocabulary has the ids 0 to ",
    # Values of two fields are compared, or multiplied.
    r"The body has tool_choice .*, which is not one of its tools\.",
    r"The body has a best_of other than n, ",
    r"The body asks for more than 256 completions \(prompts times n\)\.",
    r"The body has a min_tokens of \d+, but at most \d+ tokens\.",
    # Strings that must be JSON, regular expressions or grammars.
    r".*: arguments are not valid JSON: |.*: arguments must be a JSON object\.",
    r"\S* should be a JSON Schema, and is (not valid JSON|the JSON of something else)\.",
    r"\w*\.?(regex|grammar|ebnf) (repeats more|holds a regular|is too large or|cannot be |contra)",
    r"\w*\.?(grammar|ebnf) (should define |uses '|is not GBNF)",
)
"""Refusals of requests that the schema allows, since no schema can say why they are refused."""

_WORDS = re.compile("|".join(CANNOT_BE_SAID), re.DOTALL)


@schemathesis.check
def what_the_schema_allows_is_taken(
    ctx: schemathesis.CheckContext, response: schemathesis.Response, case: schemathesis.Case
) -> None:
    """positive_data_acceptance, but for what no schema can say."""
    if case.meta is None or not case.meta.generation.mode.is_positive:
        return
    if response.status_code == 400:
        message = response.json()["error"]["message"]
        assert _WORDS.match(message), message
