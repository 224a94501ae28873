"""How much an engine takes on at once, and how much memory its cache may have; torch-free."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from glm_portable.config import ModelConfig
from glm_portable.errors import UsageError

MEMORY_FRACTION = 0.5
"""Share of the memory that is free after loading that the KV cache may take."""


UNIT = 64
"""Tokens in which prompts are read for deterministic inference, at least."""
POLICIES = ("fcfs", "priority")


@dataclass(frozen=True)
class StepShape:
    """The first three of `EngineLimits`, on which depends how much memory a step takes."""

    max_model_len: int
    max_num_seqs: int
    max_num_batched_tokens: int


@dataclass(frozen=True)
class EngineLimits:
    """Named as vLLM's flags.

    max_model_len: the window, prompt and answer together. max_num_seqs: sequences in one step.
    max_num_batched_tokens: tokens in one step. num_pages, page_size: of the KV cache.
    enable_prefix_caching: whether requests share the pages of equal beginnings.
    enable_chunked_prefill: whether a prompt may be read in several steps. scheduling_policy: fcfs,
    or priority if the priorities of requests count. enable_deterministic_inference: whether what
    was cached may change no bit of an answer; for that prompts are read in units of `UNIT` tokens,
    unless the backend is batch_invariant: computes each token alike in any company.
    """

    max_model_len: int
    max_num_seqs: int
    max_num_batched_tokens: int
    num_pages: int
    page_size: int = 16
    enable_prefix_caching: bool = True
    enable_chunked_prefill: bool = True
    scheduling_policy: str = "fcfs"
    enable_deterministic_inference: bool = False
    batch_invariant: bool = False

    @property
    def unit(self) -> int:
        """Tokens in which a prompt is read: a multiple of the page size, or 0 for any number."""
        if self.batch_invariant or not self.enable_deterministic_inference:
            return 0
        return -(-UNIT // self.page_size) * self.page_size

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if type(value) is int and value < 1:
                raise UsageError(f"{name} is {value}; it must be at least 1.")
        if self.max_model_len < 2:
            raise UsageError("max_model_len is 1; it must be at least 2, prompt and answer.")
        if self.scheduling_policy not in POLICIES:
            raise UsageError(
                f"scheduling_policy {self.scheduling_policy!r} is not one of {', '.join(POLICIES)}."
            )
        if self.unit and (
            self.max_num_batched_tokens < self.unit or not self.enable_chunked_prefill
        ):
            raise UsageError(
                f"deterministic inference reads prompts in chunks of {self.unit} tokens: leave "
                f"chunked prefill on, and max_num_batched_tokens ({self.max_num_batched_tokens}) "
                "at that or more."
            )
        if not self.enable_chunked_prefill and self.max_num_batched_tokens < self.max_model_len:
            raise UsageError(
                "without chunked prefill a step must hold the longest prompt, but "
                f"max_num_batched_tokens is {self.max_num_batched_tokens} and max_model_len "
                f"{self.max_model_len}: raise the first, lower the second, or leave chunked "
                "prefill on."
            )


def step_shape(
    config: ModelConfig,
    *,
    max_model_len: int | None = None,
    max_num_seqs: int | None = None,
    max_num_batched_tokens: int | None = None,
    enable_chunked_prefill: bool = True,
) -> StepShape:
    """The model's window, 256 sequences and 2,048 tokens where not given. Raises UsageError.

    A step has a token for each sequence, so one default follows the other number.
    """
    window = config.max_position_embeddings if max_model_len is None else max_model_len
    if window > config.max_position_embeddings:
        raise UsageError(
            f"max_model_len {window} exceeds the model's window of "
            f"{config.max_position_embeddings} tokens (max_position_embeddings); lower it."
        )
    seqs, tokens = max_num_seqs, max_num_batched_tokens
    if tokens is None:
        tokens = max(2048, seqs or 0, 0 if enable_chunked_prefill else window)
    if seqs is None:
        seqs = min(256, max(1, tokens))
    if seqs > tokens > 0:
        raise UsageError(
            f"max_num_seqs {seqs} exceeds max_num_batched_tokens {tokens}, so not every sequence "
            "could have a token of each step: lower the first or raise the second."
        )
    return StepShape(window, seqs, tokens)


def default_limits(
    config: ModelConfig,
    itemsize: int,
    *,
    max_model_len: int | None = None,
    max_num_seqs: int | None = None,
    max_num_batched_tokens: int | None = None,
    memory_bytes: int | None = None,
    num_pages: int | None = None,
    account: str = "",
    advice: str = "free memory",
    page_size: int = 16,
    enable_prefix_caching: bool = True,
    enable_chunked_prefill: bool = True,
    scheduling_policy: str = "fcfs",
    enable_deterministic_inference: bool = False,
    batch_invariant: bool = False,
) -> EngineLimits:
    """Limits with a cache for max_num_seqs full windows, or as large as the memory allows.

    itemsize: bytes of one number in the cache. memory_bytes: what the cache may take; None means
    half of what this machine has free now. num_pages: of the cache, whatever the memory. account,
    advice: how memory_bytes came about, and how to have more. Raises UsageError if not even one
    window fits.
    """
    shape = step_shape(
        config,
        max_model_len=max_model_len,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max_num_batched_tokens,
        enable_chunked_prefill=enable_chunked_prefill,
    )
    window, page = shape.max_model_len, page_bytes(config, page_size, itemsize)
    pages_per_window = -(-window // page_size)
    if num_pages is not None:
        if num_pages < pages_per_window:
            raise UsageError(
                f"{num_pages} pages of the KV cache hold {num_pages * page_size} tokens, less than "
                f"one window of {window}: raise --num-gpu-blocks-override or lower max_model_len."
            )
    else:
        if memory_bytes is None:
            memory_bytes = int(available_memory() * MEMORY_FRACTION)
        affordable = max(0, memory_bytes // page)
        if affordable < pages_per_window:
            fits = f" (at most {affordable * page_size} fits)" if affordable else ""
            raise UsageError(
                f"a KV cache for one window of {window} tokens takes "
                f"{mib(pages_per_window * page)} MiB, but {mib(max(0, memory_bytes))} MiB are "
                f"available{account and f' ({account})'}; lower max_model_len{fits} or {advice}."
            )
        num_pages = min(affordable, shape.max_num_seqs * pages_per_window)
    return EngineLimits(
        **vars(shape),
        num_pages=num_pages,
        page_size=page_size,
        enable_prefix_caching=enable_prefix_caching,
        enable_chunked_prefill=enable_chunked_prefill,
        scheduling_policy=scheduling_policy,
        enable_deterministic_inference=enable_deterministic_inference,
        batch_invariant=batch_invariant,
    )


def page_bytes(config: ModelConfig, page_size: int, itemsize: int) -> int:
    """Bytes of one page over all layers, the MTP layer's included: keys and values."""
    layers = config.num_hidden_layers + config.num_nextn_predict_layers
    width = config.num_key_value_heads * config.head_dim
    return 2 * layers * page_size * width * itemsize


def available_memory() -> int:
    """Bytes this process may still use: the least of what the machine and its cgroup have left."""
    return min([_machine_memory("MemAvailable"), *_cgroup_memory(Path("/sys/fs/cgroup"))])


def total_memory() -> int:
    """Bytes of the machine, or of this process's cgroup if that is less."""
    return min([_machine_memory("MemTotal"), *_cgroup_limit(Path("/sys/fs/cgroup"))])


def _machine_memory(field: str) -> int:
    """MemAvailable is Linux's estimate, which counts the page cache as free; elsewhere all is."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    fields = dict(line.split(":", 1) for line in lines)
    return int(fields[field].split()[0]) * 1024


def _cgroup_limit(folder: Path) -> Iterator[int]:
    """A container's limit (cgroup v2); nothing where there is none."""
    try:
        limit = (folder / "memory.max").read_text(encoding="ascii").strip()
    except OSError:
        return
    if limit != "max":
        yield int(limit)


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


def mib(count: int) -> str:
    """For sentences: "1,024"."""
    return f"{count // 2**20:,}"
