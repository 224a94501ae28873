"""GLM in Python: load a checkpoint, look at its numbers, generate.

from glm_portable import GLM

glm = GLM.load("zai-org/GLM-4.5-Air", backend="cpu", dtype="bfloat16")
glm.logits([1, 2, 3])
glm.generate([{"role": "user", "content": "Hello"}], max_tokens=100).content
"""

import logging
import queue
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from glm_portable import formats, hub, ops, pocket
from glm_portable.checkpoint import Checkpoint
from glm_portable.config import ModelConfig
from glm_portable.engine.core import LanguageModel
from glm_portable.engine.engine import Engine, EngineFailure, EngineLimits, default_limits
from glm_portable.engine.limits import available_memory, mib, page_bytes, step_shape, total_memory
from glm_portable.engine.memory import MemoryOptions, estimated_step, measured_step
from glm_portable.engine.speculative import SpeculativeConfig
from glm_portable.engine.types import Delta, FinishReason, SamplingParams
from glm_portable.errors import UsageError
from glm_portable.model import Model, Trace, has_mtp
from glm_portable.ops import KVCache, Step
from glm_portable.parallel import SINGLE, Parallel
from glm_portable.serve.chat import ChatTemplate, Format, tool_call_format
from glm_portable.serve.events import Content, Event, ToolCall, fold
from glm_portable.serve.parsing import Parser
from glm_portable.serve.sampling import defaults_of
from glm_portable.tokenizer import Tokenizer
from glm_portable.virtual import connect

DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32, "float64": torch.float64}
logger = logging.getLogger(__name__)
SIMULATED_SEQS, SIMULATED_TOKENS = 4, 64
"""Of one step on a simulated chip, where a token takes seconds and a step cannot be stopped."""

Prompt = str | Sequence[int] | Sequence[dict[str, Any]]
"""Text, token ids, or the messages of a conversation."""


@dataclass(frozen=True)
class Answer:
    """One generated message; None where there was nothing."""

    reasoning: str | None
    content: str | None
    tool_calls: tuple[ToolCall, ...]
    token_ids: tuple[int, ...]
    finish_reason: FinishReason


class GLM:
    """A model with its tokenizer and chat template, ready on one backend.

    name: what was asked for, or "glm-pocket". sampling: what the checkpoint's
    generation_config.json sets, for requests that leave it open. speculative: what the engine is to
    draft with the MTP layer.
    """

    def __init__(
        self,
        name: str,
        folder: Path,
        model: Model,
        *,
        chat_template: Path | None = None,
        tool_call_parser: str | None = None,
        max_model_len: int | None = None,
        speculative: SpeculativeConfig | None = None,
        scheduling_policy: str = "fcfs",
        simulated: bool = False,
        deterministic: bool = False,
    ) -> None:
        self.name, self.folder, self.model = name, folder, model
        self._max_model_len, self._simulated = max_model_len, simulated
        self._deterministic, self._scheduling_policy = deterministic, scheduling_policy
        self.speculative = speculative
        self.tokenizer = Tokenizer.load(folder, model.config)
        self.chat = ChatTemplate.load(folder, self.tokenizer, chat_template)
        self.call_format: Format = tool_call_format(tool_call_parser, self.chat)
        self.sampling = defaults_of(folder)

    @classmethod
    def load(
        cls,
        model: str | Path | None = None,
        *,
        backend: str = "auto",
        dtype: str = "auto",
        quantization: str | None = None,
        router_bias_from: Path | None = None,
        revision: str | None = None,
        chat_template: Path | None = None,
        tool_call_parser: str | None = None,
        max_model_len: int | None = None,
        kv_cache_dtype: str = "auto",
        speculative_config: SpeculativeConfig | Mapping[str, Any] | None = None,
        scheduling_policy: str = "fcfs",
        enable_deterministic_inference: bool = False,
        virtual: str | None = None,
        parallel: Parallel = SINGLE,
        on_bytes: Callable[[int, int], None] | None = None,
        on_note: Callable[[str], None] = logger.warning,
    ) -> "GLM":
        """Load a folder, a Hugging Face id or "modelscope:ID"; None is the embedded pocket model.

        dtype: bfloat16, float32, float64, or auto for the checkpoint's own. quantization: "w8a8" or
        "bf16" to convert the weights as they are read; None takes them as stored, or what fits if
        the backend does not run that. router_bias_from: the original of a conversion that lost its
        router biases. max_model_len: the window that `generate` has room for, the model's own if
        None. kv_cache_dtype: auto (the model's), bfloat16, or fp8 (also fp8_e4m3).
        speculative_config: what to draft with the MTP layer, as for vLLM:
        {"method": "mtp", "num_speculative_tokens": 1}. scheduling_policy: of `generate`, "priority"
        if its priorities count. enable_deterministic_inference: whether no bit of an answer may
        depend on other requests and on what was cached, where the backend can promise that; else
        prompts are read in units (see `EngineLimits`). virtual: a chip to simulate, on which the
        backend computes. parallel: this process's place among several that each load their part.
        on_bytes is called with (bytes just read, bytes in all), on_note with what a person should
        know of the conversion and of the cache.
        Raises UsageError for whatever cannot be loaded.
        """
        if isinstance(speculative_config, Mapping):
            speculative_config = SpeculativeConfig.of(speculative_config)
        folder = pocket.FOLDER if model is None else hub.resolve(str(model), revision)
        config = ModelConfig.load(folder)
        chosen = ops.load(backend) if virtual is None else connect(backend, virtual)
        if enable_deterministic_inference:
            chosen = ops.batch_invariant(chosen) or chosen
            parallel = replace(parallel, in_order=True)
        weights = Checkpoint(
            folder,
            config,
            dtype=_dtype(dtype, config),
            device=chosen.device,
            router_bias_from=router_bias_from,
            parallel=parallel,
            on_bytes=None if on_bytes is None else lambda n: on_bytes(n, weights.total_bytes),
        )
        weights.quantization = _conversion(quantization, weights, chosen, on_note)
        # What can be refused comes first: it shows before minutes of reading weights.
        if speculative_config is not None and not has_mtp(config, weights):
            raise UsageError(
                f"{folder} has no MTP layer to draft with: leave speculative decoding off, or use "
                "a checkpoint that kept it."
            )
        Tokenizer.load(folder, config)
        kv_dtype = _kv_dtype(kv_cache_dtype, weights.dtype, chosen)
        loaded = Model(config, chosen, weights, kv_dtype)
        if kv_dtype.itemsize == 1 and parallel.rank == 0:
            on_note(_about_scales(loaded))
        if weights.conversion_errors:
            on_note(_lost(weights.conversion_errors))
        name = "glm-pocket" if model is None else str(model)
        return cls(
            name,
            folder,
            loaded,
            chat_template=chat_template,
            tool_call_parser=tool_call_parser,
            max_model_len=max_model_len,
            speculative=speculative_config,
            scheduling_policy=scheduling_policy,
            simulated=virtual is not None,
            deterministic=enable_deterministic_inference,
        )

    def logits(self, ids: Sequence[int]) -> Tensor:
        """Next-token logits at every position: (T, V) float32."""
        return self._forward(ids)[1]

    def mtp_logits(self, ids: Sequence[int]) -> Tensor:
        """(T - 1, V) float32: row i predicts token i + 2 from the tokens up to i + 1."""
        if self.model.mtp is None:
            raise UsageError(f"{self.name} has no MTP layer; use a checkpoint that kept it.")
        if len(ids) < 2:
            raise UsageError(f"mtp_logits needs at least two tokens, not {len(ids)}.")
        following = torch.tensor(list(ids[1:]), device=self.model.ops.device)
        with torch.inference_mode():
            step, caches = self._prefill(len(ids) - 1)
            hidden = self.model.forward(self._ids(ids[:-1]), step, caches)
            return self.model.mtp_logits(self.model.mtp(following, hidden, step, caches[-1]))

    def trace(self, ids: Sequence[int]) -> Trace:
        """The residual stream entering every layer, and every router's weights and experts."""
        trace = Trace()
        self._forward(ids, trace)
        return trace

    def generate(
        self,
        prompt: Prompt,
        *,
        tools: Sequence[dict[str, Any]] | None = None,
        chat_template_kwargs: dict[str, Any] | None = None,
        priority: int = 0,
        cache_salt: str = "",
        **sampling: Any,
    ) -> Answer:
        """One answer. `sampling` are fields of SamplingParams (temperature, max_tokens, ...).

        priority, cache_salt: see `Engine.submit`; for calls from several threads.

        Thinking and tool calls are told apart in the answer to a conversation; the answer to text
        or ids is all content. Raises UsageError for a bad request, EngineFailure if it failed.
        """
        deltas: list[Delta] = []
        events = self.stream(
            prompt,
            tools=tools,
            chat_template_kwargs=chat_template_kwargs,
            priority=priority,
            cache_salt=cache_salt,
            on_delta=deltas.append,
            **sampling,
        )
        message = fold(events)
        reason = deltas[-1].finish_reason
        assert reason is not None
        tokens = tuple(token for delta in deltas for token in delta.token_ids)
        return Answer(message.reasoning, message.content, message.tool_calls, tokens, reason)

    def stream(
        self,
        prompt: Prompt,
        *,
        tools: Sequence[dict[str, Any]] | None = None,
        chat_template_kwargs: dict[str, Any] | None = None,
        priority: int = 0,
        cache_salt: str = "",
        on_delta: Callable[[Delta], None] = lambda delta: None,
        **sampling: Any,
    ) -> Generator[Event, None, None]:
        """The answer's events as they come; closing the iterator cancels the request."""
        ids, parser = self._encode(prompt, tools, chat_template_kwargs)
        params = replace(self.sampling, **sampling)
        for delta in self._deltas(ids, params, priority, cache_salt):
            on_delta(delta)
            yield from parser.feed(delta.text) if parser else [Content(delta.text)]
        yield from parser.finish() if parser else []

    def limits(
        self,
        *,
        max_model_len: int | None = None,
        max_num_seqs: int | None = None,
        max_num_batched_tokens: int | None = None,
        memory_bytes: int | None = None,
        gpu_memory_utilization: float | None = None,
        mem_fraction_static: float | None = None,
        num_gpu_blocks_override: int | None = None,
        enable_prefix_caching: bool = True,
        enable_chunked_prefill: bool = True,
        scheduling_policy: str = "fcfs",
        enable_deterministic_inference: bool = False,
        model: LanguageModel | None = None,
    ) -> EngineLimits:
        """Engine limits for this model and machine, where not given. Raises UsageError.

        memory_bytes: of the KV cache on this rank; for the other ways to say how large it is, and
        what it is by default, see `MemoryOptions`. Ranks on the host share its memory. model: what
        computes a step to measure its memory, if another than this rank's alone.
        enable_deterministic_inference: also where `load` was not told so.
        """
        device, parallel = self.model.ops.device, self.model.parallel
        options = MemoryOptions(
            memory_bytes, gpu_memory_utilization, mem_fraction_static, num_gpu_blocks_override
        )
        if self._simulated:
            max_num_seqs = SIMULATED_SEQS if max_num_seqs is None else max_num_seqs
            if max_num_batched_tokens is None:
                max_num_batched_tokens = max(SIMULATED_TOKENS, max_num_seqs)
        config, itemsize = parallel.local(self.model.config), self.model.kv_dtype.itemsize
        shape = step_shape(
            config,
            max_model_len=max_model_len,
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=max_num_batched_tokens,
            enable_chunked_prefill=enable_chunked_prefill,
        )
        page_size, on_host = self.model.ops.page_size, device.type == "cpu"
        drafts = 0 if self.speculative is None else self.speculative.num_speculative_tokens
        step = None
        if not on_host and not self._simulated:
            step = measured_step(model or self.model, shape, page_size, drafts)
        if step is None:
            step = estimated_step(config, self.model.dtype.itemsize, shape, drafts)
        sharing = parallel.size if on_host else 1
        free, total = _free_memory(device) // sharing, _total_memory(device) // sharing
        budget = options.budget(total, free, step, on_host)
        limits = default_limits(
            config,
            itemsize,
            **vars(shape),
            memory_bytes=budget.size,
            num_pages=num_gpu_blocks_override,
            account=budget.account,
            advice=budget.advice,
            page_size=page_size,
            enable_prefix_caching=enable_prefix_caching,
            enable_chunked_prefill=enable_chunked_prefill,
            scheduling_policy=scheduling_policy,
            enable_deterministic_inference=enable_deterministic_inference or self._deterministic,
            batch_invariant=getattr(self.model.ops, "batch_invariant", False),
        )
        size = limits.num_pages * page_bytes(config, page_size, itemsize)
        if size > free - step:
            raise UsageError(
                f"a KV cache of {mib(size)} MiB does not fit into the {mib(free)} MiB that are "
                f"free, of which the largest step takes {mib(step)}: make it smaller."
            )
        return limits

    @cached_property
    def engine(self) -> Engine:
        """The engine that `generate` and `stream` use, started at the first use."""
        seqs = SIMULATED_SEQS if self._simulated else 16
        limits = self.limits(
            max_model_len=self._max_model_len,
            max_num_seqs=seqs,
            scheduling_policy=self._scheduling_policy,
        )
        return Engine(self.model, self.tokenizer, limits, speculative=self.speculative).start()

    def _forward(self, ids: Sequence[int], trace: Trace | None = None) -> tuple[Tensor, Tensor]:
        with torch.inference_mode():
            step, caches = self._prefill(len(ids))
            hidden = self.model.forward(self._ids(ids), step, caches, trace)
            return hidden, self.model.logits(hidden)

    def _ids(self, ids: Sequence[int]) -> Tensor:
        bad = [i for i in ids if not 0 <= i < self.model.config.vocab_size]
        if bad:
            raise UsageError(
                f"token id {bad[0]} is not in the vocabulary of {self.model.config.vocab_size}."
            )
        return torch.tensor(list(ids), device=self.model.ops.device)

    def _prefill(self, count: int) -> tuple[Step, list[KVCache]]:
        window = self.model.config.max_position_embeddings
        if not 0 < count <= window:
            raise UsageError(f"{count} tokens were given; the model takes 1 to {window}.")
        size = self.model.ops.page_size
        pages = -(-count // size)
        step = Step.build([(0, count, range(pages))], size, self.model.ops.device)
        return step, self.model.allocate(pages, size)

    def _encode(
        self, prompt: Prompt, tools: Any, chat_template_kwargs: dict[str, Any] | None
    ) -> tuple[list[int], Parser | None]:
        if isinstance(prompt, str):
            return self.tokenizer.encode(prompt), None
        if all(isinstance(item, int) for item in prompt):
            return [int(item) for item in prompt if isinstance(item, int)], None
        chat = self.chat.encode(list(prompt), tools, chat_template_kwargs=chat_template_kwargs)
        parser = Parser(tools, starts_in_reasoning=chat.starts_in_reasoning, thinking=chat.thinking)
        return chat.token_ids, parser

    def _deltas(
        self, ids: list[int], params: SamplingParams, priority: int, cache_salt: str
    ) -> Iterator[Delta]:
        arrived: queue.SimpleQueue[Delta] = queue.SimpleQueue()
        request = self.engine.submit(
            ids, params, arrived.put, priority=priority, cache_salt=cache_salt
        )
        delta = Delta()
        try:
            while delta.finish_reason is None:
                delta = arrived.get()
                if delta.finish_reason == "error":
                    raise EngineFailure(delta.error or "The request failed.")
                yield delta
        finally:
            self.engine.cancel(request)


def _dtype(name: str, config: ModelConfig) -> torch.dtype:
    name = config.dtype if name == "auto" else name
    if name == "float16":  # its range is too small for these activations
        name = "bfloat16"
    if name not in DTYPES:
        raise UsageError(f"dtype {name!r} is not one of auto, {', '.join(DTYPES)}.")
    return DTYPES[name]


def _kv_dtype(name: str, dtype: torch.dtype, backend: ops.Ops) -> torch.dtype:
    """Of the KV cache's pages. Raises UsageError."""
    if name == "auto" or DTYPES.get(name) == dtype:
        return dtype
    if name in ("fp8", "fp8_e4m3"):
        found = ops.fp8_pages(backend)
        if found is None:
            raise UsageError(
                f"backend {backend.name!r} takes no FP8 KV cache: leave --kv-cache-dtype at auto."
            )
        return found
    if name == "fp8_e5m2":
        raise UsageError(
            "kv_cache_dtype fp8_e5m2 is not supported, as its two bits of mantissa cost more "
            "accuracy at the same size: use fp8, which is e4m3."
        )
    if name in DTYPES:
        raise UsageError(
            f"kv_cache_dtype {name} is not the model's {str(dtype).removeprefix('torch.')}: use "
            "auto or fp8, or load the model with that --dtype."
        )
    raise UsageError(f"kv_cache_dtype {name!r} is not one of auto, bfloat16, fp8, fp8_e4m3.")


def _about_scales(model: Model) -> str:
    kind = str(model.kv_dtype).removeprefix("torch.")
    if model.has_kv_scales:
        return f"KV cache in {kind}, with the checkpoint's k_scale and v_scale"
    return f"KV cache in {kind}, with scales of 1: the checkpoint has no k_scale and v_scale"


def _conversion(
    asked: str | None, weights: Checkpoint, backend: ops.Ops, on_note: Callable[[str], None]
) -> str | None:
    """What to convert the weights to; measures memory only where the backend leaves no choice."""

    def measure() -> formats.Memory:
        sizes = {target: weights.loaded_bytes(target) for target in formats.TARGETS}
        return formats.Memory(sizes, _free_memory(backend.device))

    stored = formats.stored_format(weights.config)
    choice = formats.choose(asked, stored, ops.formats(backend), backend.name, measure)
    if choice.note is not None:
        on_note(choice.note)
    return choice.quantization


def _lost(errors: dict[str, float]) -> str:
    worst = ", ".join(f"{error:.2%} in {group}" for group, error in sorted(errors.items()))
    return f"Rounded weights to INT8: relative error of the worst matrix {worst}"


def _free_memory(device: torch.device) -> int:
    """Bytes that can still be allocated there."""
    if device.type == "cpu":
        return available_memory()
    return int(torch.accelerator.get_memory_info(device)[0])


def _total_memory(device: torch.device) -> int:
    """Bytes that it has."""
    if device.type == "cpu":
        return total_memory()
    return int(torch.accelerator.get_memory_info(device)[1])
