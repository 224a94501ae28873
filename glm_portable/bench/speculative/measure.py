"""Answers the same questions with and without drafts, step by step, on one loaded model."""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import TypeVar

import torch
from torch import Tensor

from glm_portable import ops
from glm_portable.checkpoint import Checkpoint
from glm_portable.config import ModelConfig
from glm_portable.engine.core import EngineCore
from glm_portable.engine.limits import EngineLimits
from glm_portable.engine.request import Request
from glm_portable.engine.sampling import RowSampler
from glm_portable.engine.scheduler import Sequence as TokenSequence
from glm_portable.engine.speculative import SpeculativeConfig
from glm_portable.engine.stats import EngineStats
from glm_portable.engine.stopping import AnswerText, TextDecoder
from glm_portable.engine.types import SamplingParams
from glm_portable.errors import UsageError
from glm_portable.evaluate.run import questions
from glm_portable.glm import DTYPES, GLM
from glm_portable.model import Model, has_mtp
from glm_portable.ops import KVCache, Ops, Step

T = TypeVar("T")
Clock = Callable[[], float]

RANDOM_PROMPT = 32
"""Tokens of a prompt for a checkpoint without a tokenizer."""


class NoText:
    """A decoder for such a checkpoint."""

    def add(self, ids: Iterable[int]) -> str:
        return ""

    def flush(self) -> str:
        return ""


@dataclass(frozen=True)
class Subject:
    """A model and what to ask it.

    ask: makes so many prompts. stream: makes the decoder of an answer. clock: in seconds.
    """

    model: Model
    vocab_size: int
    ask: Callable[[int], list[list[int]]]
    stream: Callable[[], TextDecoder]
    clock: Clock = time.perf_counter


def load(folder: Path, backend: str, dtype: str, clock: Clock = time.perf_counter) -> Subject:
    """To ask held-out questions, or random tokens if there is no tokenizer. Raises UsageError."""
    if (folder / "tokenizer.json").exists():
        glm = GLM.load(folder, backend=backend, dtype=dtype, speculative_config=SpeculativeConfig())
        size = min(glm.tokenizer.vocab_size, glm.model.config.vocab_size)
        return Subject(
            glm.model, size, lambda count: _questions(glm, count), glm.tokenizer.stream, clock
        )
    config, chosen = ModelConfig.load(folder), ops.load(backend)
    weights = Checkpoint(folder, config, dtype=DTYPES[dtype], device=chosen.device)
    if not has_mtp(config, weights):
        raise UsageError(f"{folder} has no MTP layer to draft with: name another checkpoint.")

    def random(count: int) -> list[list[int]]:
        g = torch.Generator().manual_seed(0)
        ids: list[list[int]] = torch.randint(
            0, config.vocab_size, (count, RANDOM_PROMPT), generator=g
        ).tolist()
        return ids

    return Subject(Model(config, chosen, weights), config.vocab_size, random, NoText, clock)


def _questions(glm: GLM, count: int) -> list[list[int]]:
    """Of all skills in turn, each once with thinking and once without."""
    asked = questions(1 + count // 40, None, 9000)
    chosen = [asked[place * len(asked) // count] for place in range(count)]
    return [
        glm.chat.encode(
            case.messages, case.tools, chat_template_kwargs={"enable_thinking": case.thinking}
        ).token_ids
        for case in chosen
    ]


class Clocked:
    """The model, with the seconds that its passes take."""

    def __init__(self, model: Model, clock: Clock = time.perf_counter) -> None:
        self._model, self.has_mtp, self._clock = model, model.has_mtp, clock
        self.computed, self.verifying, self.drafting, self.draft_passes = 0, 0.0, 0.0, 0

    @property
    def config(self) -> ModelConfig:
        return self._model.config

    @property
    def ops(self) -> Ops:
        return self._model.ops

    def allocate(self, pages: int, page_size: int) -> list[KVCache]:
        return self._model.allocate(pages, page_size)

    def forward(self, ids_T: Tensor, step: Step, caches: Sequence[KVCache]) -> Tensor:
        self.computed, self.verifying, self.drafting, self.draft_passes = len(ids_T), 0.0, 0.0, 0
        hidden_TD, seconds = self._timed(lambda: self._model.forward(ids_T, step, caches))
        self.verifying += seconds
        return hidden_TD

    def logits(self, hidden_TD: Tensor) -> Tensor:
        logits_TV, seconds = self._timed(lambda: self._model.logits(hidden_TD))
        self.verifying += seconds
        return logits_TV

    def mtp_forward(
        self, next_ids_T: Tensor, hidden_TD: Tensor, step: Step, caches: Sequence[KVCache]
    ) -> tuple[Tensor, Tensor]:
        both, seconds = self._timed(
            lambda: self._model.mtp_forward(next_ids_T, hidden_TD, step, caches)
        )
        self.drafting += seconds
        self.draft_passes += 1
        return both

    def mtp_logits(self, hidden_TD: Tensor) -> Tensor:
        logits_TV, seconds = self._timed(lambda: self._model.mtp_logits(hidden_TD))
        self.drafting += seconds
        return logits_TV

    def _timed(self, run: Callable[[], T]) -> tuple[T, float]:
        begin = self._clock()
        value = run()
        if self.ops.device.type != "cpu":
            torch.accelerator.synchronize()
        return value, self._clock() - begin


@dataclass(frozen=True)
class StepTime:
    """Seconds of a step: of all of it, of the model's pass, and of one pass of the MTP layer."""

    whole: float
    verify: float
    draft: float


@dataclass
class Mode:
    """One way to answer: without drafts (None), or with these. What it took, repetition by
    repetition.

    decode, whole: seconds from where every question is read, and from the start. tokens, rows: from
    there on, and sequences summed over the steps that gave them. steps: those with every sequence
    and all its drafts. answers: the tokens, which are the same in every mode and repetition if the
    arithmetic does not round differently.
    """

    speculative: SpeculativeConfig | None
    decode: list[float] = field(default_factory=list)
    whole: list[float] = field(default_factory=list)
    steps: list[StepTime] = field(default_factory=list)
    tokens: int = 0
    rows: int = 0
    answers: list[list[int]] = field(default_factory=list)
    drafts: int = 0
    accepted: list[int] = field(default_factory=list)

    @property
    def k(self) -> int:
        return 0 if self.speculative is None else self.speculative.num_speculative_tokens

    @property
    def shares(self) -> list[float]:
        """Of the drafts in each position, how many were right and so were all before them."""
        return [count / max(1, self.drafts) for count in self.accepted]

    @property
    def step(self) -> StepTime | None:
        """Medians; None if no step had all sequences with all their drafts."""
        if not self.steps:
            return None
        return StepTime(
            median(step.whole for step in self.steps),
            median(step.verify for step in self.steps),
            median(step.draft for step in self.steps),
        )

    def run(
        self, subject: Subject, prompts: Sequence[list[int]], batch: int, max_tokens: int
    ) -> None:
        """Answer every prompt, `batch` at a time."""
        decode, whole, tokens, rows, answers = 0.0, 0.0, 0, 0, []
        drafts, accepted = 0, [0] * self.k
        for start in range(0, len(prompts), batch):
            group = Group(self, subject, prompts[start : start + batch], max_tokens)
            group.run()
            decode, whole = decode + group.decode, whole + group.whole
            tokens, rows = tokens + group.tokens, rows + group.rows
            answers += group.answers
            drafts += group.stats.num_drafts
            pairs = zip(accepted, group.stats.accepted_by_position, strict=True)
            accepted = [a + b for a, b in pairs]
        self.decode.append(decode)
        self.whole.append(whole)
        self.tokens, self.rows, self.answers = tokens, rows, answers
        self.drafts, self.accepted = drafts, accepted


class Group:
    """Some prompts that are answered at once: all are read before the first is answered."""

    def __init__(
        self, mode: Mode, subject: Subject, prompts: Sequence[list[int]], max_tokens: int
    ) -> None:
        self._mode, self._clock = mode, subject.clock
        self._model = Clocked(subject.model, subject.clock)
        page_size = subject.model.ops.page_size
        lengths = [len(prompt) + max_tokens for prompt in prompts]
        window = subject.model.config.max_position_embeddings
        if max(lengths) > window:
            raise UsageError(
                f"a question and {max_tokens} tokens of answer exceed the window of {window}: "
                "lower --max-tokens."
            )
        limits = EngineLimits(
            max_model_len=window,
            max_num_seqs=len(prompts),
            max_num_batched_tokens=max(2048, 8 * len(prompts)),
            num_pages=sum(-(-length // page_size) for length in lengths),
            page_size=page_size,
        )
        self._core = EngineCore(self._model, limits, subject.vocab_size, mode.speculative)
        self.answers: list[list[int]] = [[] for _ in prompts]
        self.decode = self.whole = 0.0
        self.tokens = self.rows = 0
        for place, prompt in enumerate(prompts):
            self._core.add(self._request(subject, place, prompt, max_tokens))

    @property
    def stats(self) -> EngineStats:
        return self._core.stats()

    def run(self) -> None:
        begin = self._clock()
        while not all(self.answers):
            self._core.step()
        first, read = self._clock(), sum(map(len, self.answers))
        while self._core.requests:
            self._step()
        end = self._clock()
        self.decode, self.whole = end - first, end - begin
        self.tokens = sum(map(len, self.answers)) - read

    def _step(self) -> None:
        rows = len(self._core.requests)
        begin = self._clock()
        self._core.step()
        seconds = self._clock() - begin
        self.rows += rows
        model = self._model
        if model.computed == len(self.answers) * (self._mode.k + 1):
            draft = model.drafting / max(1, model.draft_passes)
            self._mode.steps.append(StepTime(seconds, model.verifying, draft))

    def _request(self, subject: Subject, place: int, prompt: list[int], max_tokens: int) -> Request:
        params, eos = SamplingParams(temperature=0), subject.model.config.eos_token_id
        return Request(
            params=params,
            on_delta=lambda delta: self.answers[place].extend(delta.token_ids),
            sequence=TokenSequence(str(place), list(prompt), len(prompt) + max_tokens),
            num_prompt_tokens=len(prompt),
            eos_ids=frozenset(eos),
            text=AnswerText(subject.stream(), ()),
            row=RowSampler(params, 0, eos, ()),
        )
