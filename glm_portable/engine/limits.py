"""How much an engine takes on at once, and how much memory its cache may have; torch-free."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from glm_portable.config import ModelConfig
from glm_portable.errors import UsageError

MEMORY_FRACTION = 0.5
"""Share of the memory that is free after loading that the KV cache may take."""


@dataclass(frozen=True)
class EngineLimits:
    """Named as vLLM's flags.

    max_model_len: the window, prompt and answer together. max_num_seqs: sequences in one step.
    max_num_batched_tokens: tokens in one step. num_pages, page_size: of the KV cache.
    """

    max_model_len: int
    max_num_seqs: int
    max_num_batched_tokens: int
    num_pages: int
    page_size: int = 16

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value < 1:
                raise UsageError(f"{name} is {value}; it must be at least 1.")
        if self.max_model_len < 2:
            raise UsageError("max_model_len is 1; it must be at least 2, prompt and answer.")


def default_limits(
    config: ModelConfig,
    itemsize: int,
    *,
    max_model_len: int | None = None,
    max_num_seqs: int | None = None,
    max_num_batched_tokens: int | None = None,
    memory_bytes: int | None = None,
    page_size: int = 16,
) -> EngineLimits:
    """Limits with a cache for max_num_seqs full windows, or as large as the memory allows.

    itemsize: bytes of one number in the cache. memory_bytes: what the cache may take; None means
    half of what this machine has free now. Raises UsageError if not even one window fits.
    """
    window = config.max_position_embeddings if max_model_len is None else max_model_len
    if window > config.max_position_embeddings:
        raise UsageError(
            f"max_model_len {window} exceeds the model's window of "
            f"{config.max_position_embeddings} tokens (max_position_embeddings); lower it."
        )
    seqs = 256 if max_num_seqs is None else max_num_seqs
    tokens = 2048 if max_num_batched_tokens is None else max_num_batched_tokens
    if memory_bytes is None:
        memory_bytes = int(available_memory() * MEMORY_FRACTION)
    page = page_bytes(config, page_size, itemsize)
    pages_per_window = -(-window // page_size)
    affordable = memory_bytes // page
    if affordable < pages_per_window:
        raise UsageError(
            f"a KV cache for one window of {window} tokens takes "
            f"{_mib(pages_per_window * page)} MiB, but {_mib(memory_bytes)} MiB are available; "
            f"lower max_model_len (at most {affordable * page_size} fits) or free memory."
        )
    pages = min(affordable, seqs * pages_per_window)
    return EngineLimits(window, seqs, tokens, pages, page_size)


def page_bytes(config: ModelConfig, page_size: int, itemsize: int) -> int:
    """Bytes of one page over all layers, the MTP layer's included: keys and values."""
    layers = config.num_hidden_layers + config.num_nextn_predict_layers
    width = config.num_key_value_heads * config.head_dim
    return 2 * layers * page_size * width * itemsize


def available_memory() -> int:
    """Bytes this process may still use: the least of what the machine and its cgroup have left."""
    return min([_machine_memory(), *_cgroup_memory(Path("/sys/fs/cgroup"))])


def _machine_memory() -> int:
    """Linux's estimate, which counts the page cache as free; elsewhere all physical memory."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    fields = dict(line.split(":", 1) for line in lines)
    return int(fields["MemAvailable"].split()[0]) * 1024


def _cgroup_memory(folder: Path) -> Iterator[int]:
    """A container's limit less what it uses (cgroup v2); nothing where there is no limit."""
    try:
        limit, used, stat = (
            (folder / f"memory.{name}").read_text(encoding="ascii").split()
            for name in ("max", "current", "stat")
        )
    except OSError:
        return
    if limit != ["max"]:
        # Pages of files, such as the checkpoint just read, are given back when needed.
        fields = dict(zip(stat[::2], map(int, stat[1::2]), strict=True))
        cached = fields["active_file"] + fields["inactive_file"]
        yield max(0, int(limit[0]) - int(used[0]) + cached)


def _mib(count: int) -> int:
    return count // 2**20
