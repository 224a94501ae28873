"""One side of the comparison in a process of its own, so that load time and memory are its own.

Reads one task a line on stdin, `{"task": "decode", "batch": 8, "steps": 16}`, and answers each with
one line on stdout. The first line answers the loading. A task's set-up is outside its time.
"""

import argparse
import importlib
import json
import resource
import sys
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from glm_portable import ops
from glm_portable.checkpoint import Checkpoint
from glm_portable.config import ModelConfig
from glm_portable.model import Model, Trace
from glm_portable.ops import Step

PAGE = 16
PROMPT = 32
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}

Run = Callable[[], Any]


class Side(Protocol):
    """Both engines: each method sets a task up and returns what is timed."""

    def prefill(self, tokens: int) -> Run: ...

    def decode(self, batch: int, steps: int) -> Run: ...


class Ours:
    """The model on a backend, driven without the server and the engine."""

    def __init__(
        self, folder: Path, dtype: torch.dtype, backend: str, deterministic: bool = False
    ) -> None:
        config = ModelConfig.load(folder)
        chosen = ops.promising(ops.load(backend)) if deterministic else ops.load(backend)
        weights = Checkpoint(folder, config, dtype=dtype, device=chosen.device)
        self.model = Model(config, chosen, weights)

    def prefill(self, tokens: int) -> Run:
        pages = -(-tokens // PAGE)
        caches, device = self.model.allocate(pages, PAGE), self.model.ops.device
        ids = _ids(1, tokens, self.model.config.vocab_size)[0].to(device)

        def run() -> Tensor:
            step = Step.build([(0, tokens, range(pages))], PAGE, device)
            return self.model.logits(self.model.forward(ids, step, caches)[-1:]).argmax(-1).cpu()

        return run

    def decode(self, batch: int, steps: int) -> Run:
        begin, step_once = self._sequences(batch, steps)

        def run() -> None:
            ids = begin
            for i in range(steps):
                ids = step_once(ids, i, None)
                ids.cpu()

        return run

    def experts_read(self, batch: int, steps: int) -> Run:
        """Not timed: the mean number of experts, over all layers, that a decode step reads."""
        begin, step_once = self._sequences(batch, steps)

        def run() -> float:
            ids, read = begin, 0
            for i in range(steps):
                trace = Trace()
                ids = step_once(ids, i, trace)
                read += sum(len(set(e.flatten().tolist())) for _, e in trace.routed.values())
            return read / steps

        return run

    def _sequences(
        self, batch: int, steps: int
    ) -> tuple[Tensor, Callable[[Tensor, int, Trace | None], Tensor]]:
        """The first token of each sequence after its prompt, and how to take one step."""
        model, each = self.model, -(-(PROMPT + steps) // PAGE)
        device, caches = model.ops.device, model.allocate(batch * each, PAGE)
        pages = [range(b * each, (b + 1) * each) for b in range(batch)]
        ids = _ids(batch, PROMPT, model.config.vocab_size).flatten().to(device)
        step = Step.build([(0, PROMPT, p) for p in pages], PAGE, device)
        last = model.forward(ids, step, caches)[PROMPT - 1 :: PROMPT]

        def step_once(ids: Tensor, i: int, trace: Trace | None) -> Tensor:
            step = Step.build([(PROMPT + i, 1, p) for p in pages], PAGE, device)
            return model.logits(model.forward(ids, step, caches, trace)).argmax(-1)

        return model.logits(last).argmax(-1), step_once


class Transformers:
    """transformers as `from_pretrained` gives it."""

    def __init__(self, folder: Path, dtype: torch.dtype) -> None:
        transformers: Any = importlib.import_module("transformers")
        transformers.logging.set_verbosity_error()
        self.model: Any = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
        self.model.eval()
        self.new_cache: Callable[[], Any] = lambda: transformers.DynamicCache(
            config=self.model.config
        )

    def prefill(self, tokens: int) -> Run:
        ids = _ids(1, tokens, self.model.config.vocab_size)

        def run() -> Tensor:
            return self._next(ids, self.new_cache())

        return run

    def decode(self, batch: int, steps: int) -> Run:
        kept = self.new_cache()
        begin = self._next(_ids(batch, PROMPT, self.model.config.vocab_size), kept)

        def run() -> None:
            ids = begin
            for _ in range(steps):
                ids = self._next(ids, kept)
            kept.crop(-steps)

        return run

    def _next(self, ids: Tensor, kept: Any) -> Tensor:
        out = self.model(ids, past_key_values=kept, use_cache=True, logits_to_keep=1)
        best: Tensor = out.logits[:, -1].argmax(-1, keepdim=True)
        return best


class Machine:
    """What the processor can do at most: the yardstick for both."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype

    def bandwidth(self, bytes_read: int) -> Run:
        """Read memory that no cache holds."""
        numbers = torch.ones(bytes_read // 4)
        return lambda: numbers.sum().item()

    def matmul(self, size: int) -> Run:
        """2 * size^3 operations in the model's dtype."""
        a, b = (torch.randn(size, size).to(self.dtype) for _ in range(2))
        return lambda: a @ b


def _ids(batch: int, tokens: int, vocabulary: int) -> Tensor:
    g = torch.Generator().manual_seed(0)
    return torch.randint(0, vocabulary, (batch, tokens), generator=g)


def peak_bytes() -> int:
    """The most memory this process has had resident.

    Linux: ru_maxrss starts at the parent's peak, VmHWM does not.
    """
    status = Path("/proc/self/status")
    if status.exists():
        line = next(x for x in status.read_text().splitlines() if x.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _timed(run: Run) -> dict[str, Any]:
    begin, cpu = time.perf_counter(), time.process_time()
    value = run()
    wall = time.perf_counter() - begin
    answer = {"wall": wall, "cpu": time.process_time() - cpu, "peak": peak_bytes()}
    return {**answer, "value": value} if isinstance(value, float) else answer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("side", choices=["ours", "transformers", "deterministic", "machine"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--dtype", choices=DTYPES, required=True)
    parser.add_argument("--backend", required=True)
    parser.add_argument("--threads", type=int, default=0)
    a = parser.parse_args()
    answers, sys.stdout = sys.stdout, sys.stderr  # libraries print; the answers stay apart
    if a.threads:
        torch.set_num_threads(a.threads)
    if a.side == "transformers":
        importlib.import_module("transformers.models.glm4_moe")  # not part of the load time
    dtype = DTYPES[a.dtype]
    sides: dict[str, Callable[[], Any]] = {
        "ours": lambda: Ours(a.folder, dtype, a.backend),
        "transformers": lambda: Transformers(a.folder, dtype),
        "deterministic": lambda: Ours(a.folder, dtype, a.backend, deterministic=True),
        "machine": lambda: Machine(dtype),
    }
    with torch.inference_mode(False):
        made: list[Any] = []
        loaded = _timed(lambda: made.append(sides[a.side]()))
    answer = {**loaded, "threads": torch.get_num_threads()}

    @cache
    def ready(line: str) -> Run:
        task = json.loads(line)
        run: Run = getattr(made[0], task.pop("task"))(**task)
        run()  # the first time fills caches and compiles
        return run

    print(json.dumps(answer), file=answers, flush=True)
    with torch.inference_mode():
        for line in sys.stdin:
            print(json.dumps(_timed(ready(line))), file=answers, flush=True)


if __name__ == "__main__":
    main()
