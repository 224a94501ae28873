"""Training chats as batches of token ids and weights, by the recipe's phases."""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import tokenizers
import torch
from torch import Tensor

from glm_portable.tasks import Chat, generate
from tools.pocket_training.rendering import render

ROLES = ("<|system|>", "<|user|>", "<|assistant|>", "<|observation|>")
PROMPT_SHARE, PROMPT_WEIGHT = 0.15, 0.08
"""Some of the tokens that the model need not write count a little: it learns to read them."""

Part = tuple[float, dict[str, Any]]  # share, arguments of `generate`


@dataclass(frozen=True)
class Phase:
    """until: the share of the training at which it ends. longest: tokens of a chat, others are
    left out. parts: which chats, by share; {} is the mixture of `glm_portable.tasks`."""

    name: str
    until: float
    longest: int
    parts: tuple[Part, ...]


RECIPE = (
    Phase("short chats", 0.25, 512, ((1.0, {}),)),
    Phase("all chats", 0.60, 1600, ((1.0, {}),)),
    Phase(
        "more short skills",
        0.75,
        1600,
        (
            (0.50, {}),
            (0.20, {"family": "arithmetic"}),
            (0.20, {"family": "strings"}),
            (0.10, {"family": "recall"}),
        ),
    ),
    Phase(
        "arithmetic and tools",
        1.00,
        1600,
        (
            (0.45, {}),
            (0.30, {"family": "arithmetic", "thinking": True}),
            (0.06, {"family": "arithmetic", "thinking": False}),
            (0.06, {"family": "tools", "turn": "decline"}),
            (0.08, {"family": "tools", "turn": "call"}),
            (0.05, {"family": "tools", "turn": "parallel"}),
        ),
    ),
)


def phase_at(progress: float, recipe: tuple[Phase, ...] = RECIPE) -> Phase:
    """The phase at a share of the training between 0 and 1."""
    return next((phase for phase in recipe if progress < phase.until), recipe[-1])


@dataclass(frozen=True)
class Example:
    """One chat: ids and, for each, 1 if the model has to write it."""

    ids: np.ndarray[Any, np.dtype[np.int64]]
    written: np.ndarray[Any, np.dtype[np.float32]]


class Encoder:
    """Chats to examples."""

    def __init__(self, tokenizer: tokenizers.Tokenizer, template: str) -> None:
        self.tokenizer, self.template = tokenizer, template
        self.roles = {tokenizer.token_to_id(role) for role in ROLES}
        self.assistant = tokenizer.token_to_id("<|assistant|>")
        self.user = tokenizer.token_to_id("<|user|>")

    def __call__(self, chat: Chat) -> Example:
        """The model writes what follows <|assistant|>, with the token that ends the turn.

        The template drops the thoughts before the last question, so with thinking the answers
        before it are not as the model would write them, and do not count.
        """
        ids = np.array(self.tokenizer.encode(render(self.template, chat)).ids, np.int64)
        written = np.zeros(len(ids), np.float32)
        questions = np.flatnonzero(ids[:-1] == self.user)
        first = int(questions[-1]) if chat.thinking else 0
        writing = False
        for i, token in enumerate(ids.tolist()):
            written[i] = writing
            if token in self.roles:
                writing = token == self.assistant and i >= first
        return Example(ids, written)


class Batches:
    """An endless stream of batches, the same for the same seed; `chunk` says how far it is."""

    def __init__(
        self, encoder: Encoder, seed: int, tokens: int, chats_per_chunk: int = 2000, chunk: int = 0
    ) -> None:
        self.encoder, self.seed, self.tokens = encoder, seed, tokens
        self.size, self.chunk = chats_per_chunk, chunk
        self._ready: list[list[Example]] = []

    def next(self, phase: Phase) -> tuple[Tensor, Tensor]:
        """(ids_BT, weights_BT) of chats of similar length, about `tokens` tokens in all."""
        while not self._ready:
            self._ready = self._cut(self._examples(phase))
            self.chunk += 1
        return self._tensors(self._ready.pop())

    def _examples(self, phase: Phase) -> Iterator[Example]:
        shares = [share for share, _ in phase.parts]
        for index in range(self.chunk * self.size, (self.chunk + 1) * self.size):
            drawn = random.Random(f"{self.seed}/{index}").choices(phase.parts, shares)
            example = self.encoder(generate(self.seed, index, **drawn[0][1]))
            if len(example.ids) <= phase.longest:
                yield example

    def _cut(self, examples: Iterator[Example]) -> list[list[Example]]:
        """Sorted by length, cut where a batch is full, and shuffled."""
        batches: list[list[Example]] = []
        rest = sorted(examples, key=lambda example: -len(example.ids))
        while rest:
            rows = max(1, self.tokens // len(rest[0].ids))
            batches.append(rest[:rows])
            rest = rest[rows:]
        random.Random(f"{self.seed}/order/{self.chunk}").shuffle(batches)
        return batches

    def _tensors(self, batch: list[Example]) -> tuple[Tensor, Tensor]:
        """Padded at the end, where it has no weight and a causal model never looks at it."""
        shape = len(batch), max(len(example.ids) for example in batch)
        ids, weights = np.zeros(shape, np.int64), np.zeros(shape, np.float32)
        rng = np.random.default_rng(self.seed + int(batch[0].ids.sum()))
        for row, example in enumerate(batch):
            n = len(example.ids)
            read = (example.written == 0) & (rng.random(n) < PROMPT_SHARE)
            ids[row, :n] = example.ids
            weights[row, :n] = np.where(read, PROMPT_WEIGHT, example.written)
        return torch.from_numpy(ids), torch.from_numpy(weights)
