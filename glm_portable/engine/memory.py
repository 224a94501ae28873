"""How many bytes the KV cache may have: those of the device, less weights and the largest step."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch

from glm_portable.config import ModelConfig
from glm_portable.engine.core import LanguageModel
from glm_portable.engine.limits import MEMORY_FRACTION, StepShape, mib
from glm_portable.engine.sampling import RowSampler, Sampler
from glm_portable.engine.types import SamplingParams
from glm_portable.errors import UsageError
from glm_portable.ops import Step

log = logging.getLogger(__name__)

UTILIZATION = 0.9
"""Share of an accelerator's memory for the engine, unless the user says otherwise (as in vLLM)."""


@dataclass(frozen=True)
class Budget:
    """size: bytes. account: how they came about. advice: how to have more."""

    size: int
    account: str
    advice: str


@dataclass(frozen=True)
class MemoryOptions:
    """What the user gives; at most one may be set. The device's memory is the host's on the CPU.

    kv_cache_memory: bytes of the cache. gpu_memory_utilization: share of the device's memory for
    weights, cache and steps together (vLLM). mem_fraction_static: share for weights and cache,
    while steps live in the rest (SGLang). num_gpu_blocks_override: pages of the cache.
    """

    kv_cache_memory: int | None = None
    gpu_memory_utilization: float | None = None
    mem_fraction_static: float | None = None
    num_gpu_blocks_override: int | None = None

    def __post_init__(self) -> None:
        given = [f"--{f.name.replace('_', '-')}" for f in fields(self) if getattr(self, f.name)]
        if len(given) > 1:
            raise UsageError(
                f"{' and '.join(given)} each say how large the KV cache is; give one of them."
            )
        for field in fields(self):
            value = getattr(self, field.name)
            share = field.type == float | None
            if value is not None and not 0 < value <= (1 if share else float("inf")):
                wanted = "above 0 and at most 1" if share else "at least 1"
                raise UsageError(
                    f"--{field.name.replace('_', '-')} is {value}; it must be {wanted}."
                )

    def budget(self, total: int, free: int, step: int, on_host: bool) -> Budget:
        """The cache's part of a memory of so many bytes, of which so many are free after loading.

        step: what the largest step takes.
        """
        if self.kv_cache_memory is not None:
            return Budget(self.kv_cache_memory, "--kv-cache-memory", "raise --kv-cache-memory")
        used = f"{mib(total - free)} MiB in use"
        if self.mem_fraction_static is not None:
            share = self.mem_fraction_static
            account = f"{share:.0%} of {mib(total)} MiB, less {used}"
            size = min(int(total * share) - (total - free), free - step)
            return Budget(size, account, "raise --mem-fraction-static")
        if on_host and self.gpu_memory_utilization is None:
            size = int((free - step) * MEMORY_FRACTION)
            account = f"half of {mib(free)} MiB free, less {mib(step)} MiB for the largest step"
            return Budget(size, account, "free memory")
        share = UTILIZATION if self.gpu_memory_utilization is None else self.gpu_memory_utilization
        account = (
            f"{share:.0%} of {mib(total)} MiB, less {used} and {mib(step)} MiB for the largest step"
        )
        size = min(int(total * share) - (total - free), free) - step
        return Budget(size, account, "raise --gpu-memory-utilization")


def estimated_step(
    config: ModelConfig, itemsize: int, shape: StepShape, num_drafts: int = 0
) -> int:
    """Bytes of the largest step on the host, beside weights and cache, estimated from above."""
    heads, groups, size = config.num_attention_heads, config.num_key_value_heads, config.head_dim
    moe = config.num_experts_per_tok * (3 * config.moe_intermediate_size + config.hidden_size)
    shared = 3 * config.moe_intermediate_size * config.n_shared_experts
    row = 6 * config.hidden_size + (3 * heads + 4 * groups) * size
    row += max(moe + shared, 3 * config.intermediate_size)
    # A prompt attends in blocks of 64 queries: their scores, and a copy of all keys and values.
    attention = shape.max_model_len * (2 * 64 * heads + 4 * groups * size)
    logits = 6 * 4 * _sampled_rows(shape, num_drafts) * config.vocab_size
    return itemsize * (shape.max_num_batched_tokens * row + attention) + logits


def measured_step(
    model: LanguageModel, shape: StepShape, page_size: int, num_drafts: int = 0
) -> int | None:
    """The same on an accelerator, by computing such a step; None where torch cannot tell there.

    All tokens go into one page, so that no cache is needed for it: what comes out is rubbish.
    """
    memory = torch.accelerator
    try:
        memory.empty_cache()
        memory.reset_peak_memory_stats()
        before = memory.memory_allocated()
    except (RuntimeError, NotImplementedError) as error:
        log.info("torch does not tell the memory in use here (%s): it is estimated", error)
        return None
    with torch.inference_mode():
        _largest_step(model, shape, page_size, num_drafts)
    peak = memory.max_memory_allocated() - before
    memory.empty_cache()
    return peak


def _largest_step(model: LanguageModel, shape: StepShape, page_size: int, num_drafts: int) -> None:
    counts = _prompts(shape)
    device, vocab = model.ops.device, model.config.vocab_size
    layout = [(0, count, [0] * -(-count // page_size)) for count in counts]
    step = Step.build(layout, page_size, device)
    ids_T = torch.arange(sum(counts), device=device) % vocab
    hidden_TD = model.forward(ids_T, step, model.allocate(1, page_size))
    rows = min(_sampled_rows(shape, num_drafts), len(ids_T))
    params = SamplingParams(temperature=1.0, top_p=0.9)
    samplers = [RowSampler(params, 0, frozenset(), [0]) for _ in range(rows)]
    Sampler(vocab).sample(model.logits(hidden_TD[:rows]), samplers)


def _sampled_rows(shape: StepShape, num_drafts: int) -> int:
    """Of the logits of a step in which every sequence has a token and its drafts."""
    return min(shape.max_num_seqs * (1 + num_drafts), shape.max_num_batched_tokens)


def _prompts(shape: StepShape) -> Sequence[int]:
    """The longest prompts that together are as many tokens as a step has."""
    whole, rest = divmod(shape.max_num_batched_tokens, shape.max_model_len)
    return [shape.max_model_len] * whole + [rest] * (rest > 0)
