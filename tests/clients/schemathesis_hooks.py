"""What schemathesis loads beside its own checks: see test_schemathesis.py."""

import schemathesis

BETWEEN_FIELDS = (
    "maximum context length",
    "the vocabulary has the ids",
    "has a tool_choice that needs tools",
    "which is not one of its tools",
    "has top_logprobs without logprobs",
    "should have either prompt or messages",
    "best_of other than n",
    "completions (prompts times n)",
    "min_tokens",
    "does not support",
    "arguments are not valid JSON",  # a string that holds JSON
    "arguments must be a JSON object",
    "contradict",
)
"""Reasons to refuse a request that no schema can say, by the words of the refusal."""


@schemathesis.check
def what_the_schema_allows_is_taken(
    ctx: schemathesis.CheckContext, response: schemathesis.Response, case: schemathesis.Case
) -> None:
    """positive_data_acceptance, but for what depends on several fields or on the model."""
    if case.meta is None or not case.meta.generation.mode.is_positive:
        return
    if response.status_code == 400:
        message = response.json()["error"]["message"]
        assert any(words in message for words in BETWEEN_FIELDS), message
