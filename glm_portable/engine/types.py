"""What goes into the engine and what comes out of it; torch-free.

There is a delta for every token, and with log probabilities one of those. As structs they are made
in a sixth of a dataclass's time and sent to another process as plain arrays, without names. None of
them ever refers to itself, so the garbage collector need not look at them.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from msgspec import Struct
from msgspec.structs import replace

if TYPE_CHECKING:
    from glm_portable.engine.grammar import Grammar

FinishReason = Literal["stop", "length", "abort", "error"]


@dataclass(frozen=True)
class SamplingParams:
    """How one request's tokens are chosen, and when it ends.

    temperature 0 is greedy. top_k 0 and top_p 1 are off. Penalties follow vLLM: repetition counts
    prompt and output, presence and frequency (OpenAI) count output only. `logprobs` is the number
    of alternatives to report beside the chosen token, None for no logprobs at all;
    `prompt_logprobs` likewise for the tokens of the prompt. `max_tokens` None means up to the end
    of the window. `grammar`: what the answer must spell from its first token on; its
    end ends the answer, even with ignore_eos or before min_tokens.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int | None = None
    max_tokens: int | None = None
    min_tokens: int = 0
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    logprobs: int | None = None
    grammar: "Grammar | None" = None
    prompt_logprobs: int | None = None

    @property
    def may_skip_prompt(self) -> bool:
        """Whether the answer needs nothing of the prompt's tokens but the last one's logits."""
        return self.prompt_logprobs is None


class TokenLogprob(Struct, frozen=True, array_like=True, gc=False):
    """One token: its natural-log probability and the most probable alternatives.

    Of the model's own distribution, before temperature, penalties and filters. rank: 1 for the
    most probable token; told of prompt tokens alone.
    """

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...]
    rank: int | None = None


@dataclass(slots=True)
class Timeline:
    """When what happened to a request, in seconds of `time.monotonic()`; None: it did not.

    scheduled: the start of the first step it was in. first_token, last_token: the ends of steps.
    """

    arrived: float = field(default_factory=time.monotonic)
    scheduled: float | None = None
    first_token: float | None = None
    last_token: float | None = None


class Delta(Struct, frozen=True, array_like=True, gc=False):
    """What one request gained since the last delta.

    text never ends inside a character or inside what may become a stop string, so it can trail
    token_ids; the last delta carries the rest. finish_reason is set on the last delta alone.
    stop_reason: the stop string or the stop token id that ended it, None for EOS and length.
    error: one sentence, with finish_reason "error". num_cached_tokens: on the first delta that has
    tokens, how many of the prompt's were found in the cache. prompt_logprobs: on the first delta,
    if asked for: of the prompt's tokens from the second on (nothing predicts the first). parts:
    where it has several tokens, the deltas that these would have come in one by one. timeline: on
    the last delta alone.
    """

    token_ids: tuple[int, ...] = ()
    text: str = ""
    logprobs: tuple[TokenLogprob, ...] = ()
    finish_reason: FinishReason | None = None
    stop_reason: str | int | None = None
    error: str | None = None
    num_cached_tokens: int | None = None
    prompt_logprobs: tuple[TokenLogprob, ...] = ()
    parts: "tuple[Delta, ...]" = ()
    timeline: Timeline | None = None


def joined(deltas: Sequence[Delta]) -> Delta:
    """The deltas of several tokens that came at once, none of them a request's first, as one."""
    if len(deltas) == 1:
        return deltas[0]
    return replace(
        deltas[-1],
        token_ids=tuple(token for delta in deltas for token in delta.token_ids),
        text="".join(delta.text for delta in deltas),
        logprobs=tuple(entry for delta in deltas for entry in delta.logprobs),
        parts=tuple(deltas),
    )
