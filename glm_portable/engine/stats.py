"""What the engine counts; torch-free."""

from dataclasses import dataclass


@dataclass(slots=True)
class EngineStats:
    """A look at the engine. Token counts and the ones after them only ever grow.

    running, waiting: requests. prompt_tokens counts a prompt once, when its first token is
    sampled, however often it was computed. healthy: false after several failed steps in a row.
    prefix_cache_queries: tokens of the prompts that looked for others' pages; prefix_cache_hits:
    how many of them were found.

    num_drafts: how often drafts of a request were computed; num_draft_tokens: how many there were
    in all; num_accepted_tokens: how many of them became tokens of the answer, accepted_by_position:
    how many of the first, second, ... of each.
    """

    running: int
    waiting: int
    pages_used: int
    pages_total: int
    prompt_tokens: int
    generation_tokens: int
    preemptions: int
    steps: int
    failed_steps: int
    healthy: bool
    prefix_cache_queries: int = 0
    prefix_cache_hits: int = 0
    num_drafts: int = 0
    num_draft_tokens: int = 0
    num_accepted_tokens: int = 0
    accepted_by_position: tuple[int, ...] = ()
