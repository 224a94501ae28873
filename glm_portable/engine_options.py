"""Options of `serve` that say how the engine computes; the HTTP server's are in `cli.py`."""

import click

from glm_portable.options import F, option

LIMIT_OPTIONS = (
    "max_num_seqs",
    "max_num_batched_tokens",
    "enable_chunked_prefill",
    "chunked_prefill_size",
    "enable_prefix_caching",
    "enable_deterministic_inference",
    "gpu_memory_utilization",
    "mem_fraction_static",
    "kv_cache_memory",
    "num_gpu_blocks_override",
    "scheduling_policy",
    "preemption_mode",
)
"""Those of `limit_options` that become `EngineLimits`."""


def limit_options(command: F) -> F:
    """How much the engine takes on at once."""
    for decorate in reversed(
        [
            option("--max-num-seqs", type=int, help="Sequences in one step. [default: 256]"),
            option(
                "--max-num-batched-tokens", type=int, help="Tokens in one step. [default: 2048]"
            ),
            option(
                "--enable-chunked-prefill/--no-enable-chunked-prefill",
                default=True,
                help="Whether a prompt may be read in several steps, among others' tokens.",
            ),
            option(
                "--chunked-prefill-size",
                type=int,
                help="SGLang's name of --max-num-batched-tokens; -1 reads prompts whole.",
            ),
            option(
                "--enable-prefix-caching/--no-enable-prefix-caching",
                " /--disable-radix-cache",
                default=True,
                help="Whether requests share the keys and values of equal beginnings.",
            ),
            option(
                "--enable-deterministic-inference",
                is_flag=True,
                help="Let no bit of an answer depend on what was cached, nor on other requests "
                "(which ascend cannot promise). Slower.",
            ),
            option(
                "--gpu-memory-utilization",
                type=float,
                help="Share of the device's memory (on the CPU: of the machine's) for weights, "
                "KV cache and steps. [default: 0.9; on the CPU the cache takes half of what is "
                "free]",
            ),
            option(
                "--mem-fraction-static",
                type=float,
                help="SGLang's: share for weights and KV cache; steps live in the rest.",
            ),
            option(
                "--kv-cache-memory",
                "--kv-cache-memory-bytes",
                type=int,
                envvar="GLM_PORTABLE_KV_CACHE_MEMORY",
                help="Bytes of the KV cache, on each device.",
            ),
            option("--num-gpu-blocks-override", type=int, help="Pages of the KV cache."),
            option(
                "--scheduling-policy",
                type=click.Choice(["fcfs", "priority"]),
                default="fcfs",
                help="Order of requests: of arrival, or by their field priority (lowest first).",
            ),
            option(
                "--preemption-mode",
                type=click.Choice(["recompute", "swap"]),
                default="recompute",
                help="What happens to a request whose pages are needed.",
            ),
            option("--seed", type=int, default=0, help="For requests without a seed of their own."),
        ]
    ):
        command = decorate(command)
    return command


def rank_options(command: F) -> F:
    """Among how many processes the model is split; names of vLLM and SGLang."""
    for decorate in reversed(
        [
            option(
                "--tensor-parallel-size",
                "--tp-size",
                "--tp",
                type=click.IntRange(1),
                default=1,
                help="Devices, or processes on the CPU, that share the model.",
            ),
            option(
                "--enable-expert-parallel",
                is_flag=True,
                help="Give each of them whole experts instead of a slice of all.",
            ),
            option(
                "--expert-parallel-size",
                "--ep-size",
                "--ep",
                type=click.IntRange(1),
                help="Groups of experts, where a group is sliced among several devices.",
            ),
        ]
    ):
        command = decorate(command)
    return command
