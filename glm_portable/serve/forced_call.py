"""Enforcing tool_choice "required" and a named tool.

The assistant's turn starts with thinking closed and the beginning of a call, up to the end of the
tool's name. Where several beginnings are allowed the model chooses between them token by token:
at each token where they differ it samples one among theirs alone. Then it writes the arguments,
in which nothing is enforced: it can still leave out a required one.
"""

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

from glm_portable.engine.types import SamplingParams
from glm_portable.serve.generation import Job
from glm_portable.serve.service import Service

_CERTAIN = 1e4
"""A logit bias that no other token can make up for; float32 still tells logits apart beside it."""


async def choose(
    service: Service,
    prompt_ids: list[int],
    params: SamplingParams,
    texts: Sequence[str],
    **scheduling: Any,
) -> list[int]:
    """Token ids of one of `texts`, none of which starts another; empty if there are none.

    The choices of one request share it. scheduling: what `Job` takes of it. Raises ApiError.
    """
    candidates = [service.tokenizer.encode(text) for text in texts]
    chosen: list[int] = []
    while len(candidates) > 1:
        position = len(chosen)
        allowed = {ids[position] for ids in candidates}
        if len(allowed) == 1:
            chosen += allowed
        else:
            job = _job(prompt_ids + chosen, params, allowed)
            chosen.append(await _sample(service, replace(job, **scheduling)))
        candidates = [ids for ids in candidates if ids[position] == chosen[position]]
    return candidates[0] if candidates else []


def _job(prompt_ids: list[int], params: SamplingParams, allowed: Collection[int]) -> Job:
    """One token of `allowed`, at the temperature and seed of `params`."""
    bias = {token: _CERTAIN + params.logit_bias.get(token, 0.0) for token in allowed}
    plain = SamplingParams(temperature=params.temperature, seed=params.seed)
    return Job(prompt_ids, replace(plain, logit_bias=bias, max_tokens=1, ignore_eos=True))


async def _sample(service: Service, job: Job) -> int:
    tokens: list[int] = []
    async with service.generate([job]) as generation:
        async for _, delta in generation.deltas():
            tokens += delta.token_ids
    return tokens[0]
