"""What the engine refuses at the door, in one sentence each; torch-free."""

import math
from collections.abc import Collection, Sequence

from glm_portable.engine.types import SamplingParams
from glm_portable.errors import UsageError


class EngineDraining(Exception):
    """The engine takes no new requests, because it is being shut down."""


def max_length(prompt_ids: Sequence[int], params: SamplingParams, max_model_len: int) -> int:
    """How many tokens prompt and answer may have together.

    Raises UsageError if the prompt leaves no room for an answer; LiteLLM and others recognise
    the first words.
    """
    length = len(prompt_ids)
    if length >= max_model_len:
        raise UsageError(
            f"This model's maximum context length is {max_model_len} tokens. However, the prompt "
            f"has {length} tokens and the answer needs at least one; shorten the prompt."
        )
    answer = max_model_len if params.max_tokens is None else params.max_tokens
    return min(max_model_len, length + answer)


def check_room(max_length: int, num_pages: int, page_size: int) -> None:
    """Raise UsageError if a sequence of that length could not run even alone."""
    # The last token is sampled and never computed, so it needs no room.
    if max_length - 1 > num_pages * page_size:
        raise UsageError(
            f"the request may grow to {max_length} tokens, but the KV cache holds "
            f"{num_pages * page_size}; lower max_tokens or give the cache more pages."
        )


def check_prompt(prompt_ids: Sequence[int], vocab_size: int) -> None:
    """Raise UsageError for a prompt that the model cannot read."""
    if not prompt_ids:
        raise UsageError("the prompt is empty; it needs at least one token.")
    _check_ids("the prompt", prompt_ids, vocab_size)


def check_priority(priority: int) -> None:
    """Raise UsageError for what has no place in the order of requests."""
    if not isinstance(priority, int):
        raise UsageError(f"priority is {priority!r}; it must be a whole number, for one prompt.")


def check_params(params: SamplingParams, vocab_size: int) -> None:
    """Raise UsageError for parameters that mean nothing."""
    _check_range("temperature", params.temperature, 0, math.inf)
    _check_range("top_p", params.top_p, 0, 1)
    _check_range("min_p", params.min_p, 0, 1)
    _check_range("top_k", params.top_k, 0, math.inf)
    _check_range("min_tokens", params.min_tokens, 0, math.inf)
    _check_range("presence_penalty", params.presence_penalty, -math.inf, math.inf)
    _check_range("frequency_penalty", params.frequency_penalty, -math.inf, math.inf)
    if not 0 < params.repetition_penalty < math.inf:
        raise UsageError(
            f"repetition_penalty is {params.repetition_penalty}; it must be above 0 and finite."
        )
    if params.max_tokens is not None:
        _check_range("max_tokens", params.max_tokens, max(1, params.min_tokens), math.inf)
    if params.logprobs is not None:
        _check_range("logprobs", params.logprobs, 0, vocab_size)
    if params.prompt_logprobs is not None:
        _check_range("prompt_logprobs", params.prompt_logprobs, 0, vocab_size)
    if "" in params.stop:
        raise UsageError("stop holds an empty string, which would end every answer; remove it.")
    _check_ids("logit_bias", params.logit_bias, vocab_size)
    if params.grammar is not None and params.grammar.vocabulary.size != vocab_size:
        raise UsageError(
            f"grammar is for {params.grammar.vocabulary.size} tokens, but the vocabulary has "
            f"{vocab_size}; compile it with this model's tokenizer."
        )
    for token_id, bias in params.logit_bias.items():
        _check_range(f"logit_bias of token {token_id}", bias, -math.inf, math.inf)


def _check_range(name: str, value: float, low: float, high: float) -> None:
    """Finite, and from low to high."""
    if math.isfinite(value) and low <= value <= high:
        return
    if math.isinf(high):
        wanted = "a finite number" + ("" if math.isinf(low) else f" of at least {low}")
    else:
        wanted = f"from {low} to {high}"
    raise UsageError(f"{name} is {value}; it must be {wanted}.")


def _check_ids(where: str, token_ids: Collection[int], vocab_size: int) -> None:
    for token_id in (min(token_ids, default=0), max(token_ids, default=0)):
        if not 0 <= token_id < vocab_size:
            raise UsageError(
                f"{where} holds token id {token_id}, but the vocabulary has the ids 0 to "
                f"{vocab_size - 1}; tokenize with this model's tokenizer."
            )
