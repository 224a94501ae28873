"""A model that computes nothing and a tokenizer of GLM's size: what is left is the host's work."""

import string
import threading
import time
from collections.abc import Sequence

import numpy as np
import tokenizers
import torch
from tokenizers.decoders import ByteLevel
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel as ByteLevelSplitter
from torch import Tensor

from glm_portable import ops
from glm_portable.bench.host.watch import Watch
from glm_portable.config import ModelConfig
from glm_portable.ops import KVCache, Step
from glm_portable.tokenizer import Tokenizer

VOCABULARY, LAYERS = 151_552, 92
"""Of GLM-4.5."""
CALLS_ALONE = 8
"""Columns of logits at which sampling is calls and no arithmetic to speak of."""


class NullModel:
    """Answers at once, or after `step_s` seconds in which it waits as for a GPU.

    columns: of the logits. Each step shows other logits, so that the tokens differ. The first step
    waits for `everyone`, so that all sequences go through all steps together.
    """

    def __init__(
        self,
        sequences: int,
        columns: int,
        watch: Watch,
        step_s: float = 0.0,
        everyone: threading.Event | None = None,
    ) -> None:
        self.config = _config()
        self.ops = ops.load("reference")
        self._columns, self._watch, self._step_s = columns, watch, step_s
        self._steps, self._everyone = 0, everyone
        self._logits = torch.from_numpy(
            np.random.default_rng(0).random((sequences + 64) * columns, dtype=np.float32)
        )
        self._hidden = torch.zeros(1, 1)

    def allocate(self, pages: int, page_size: int) -> list[KVCache]:
        return [KVCache(self._hidden, self._hidden) for _ in range(LAYERS)]

    def forward(self, ids_T: Tensor, step: Step, caches: Sequence[KVCache]) -> Tensor:
        if self._everyone is not None:
            self._everyone.wait()
        self._watch.forward()
        self._steps += 1
        if self._step_s:
            time.sleep(self._step_s)
        return self._hidden.expand(len(ids_T), 1)

    def logits(self, hidden_TD: Tensor) -> Tensor:
        count = len(hidden_TD) * self._columns
        start = self._steps * 7 % (64 * self._columns)
        logits = self._logits[start : start + count].view(-1, self._columns)
        self._watch.logits()
        return logits


def null_tokenizer() -> Tokenizer:
    """Every token is a word of one to four letters; the last token ends the text."""
    letters = string.ascii_lowercase
    # A byte-level vocabulary begins with one piece for each byte.
    pieces = {piece: n for n, piece in enumerate(sorted(ByteLevelSplitter.alphabet()))}
    for n in range(VOCABULARY - 1 - len(pieces)):
        word = "".join(letters[n // 26**place % 26] for place in range(4))
        pieces[f"Ġ{word}"] = len(pieces)
    tokenizer = tokenizers.Tokenizer(BPE(vocab=pieces, merges=[]))
    tokenizer.decoder = ByteLevel()
    tokenizer.add_special_tokens(["<|endoftext|>"])
    return Tokenizer(tokenizer, (VOCABULARY - 1,))


def _config() -> ModelConfig:
    return ModelConfig(
        vocab_size=VOCABULARY,
        hidden_size=5120,
        intermediate_size=12288,
        num_hidden_layers=LAYERS,
        num_attention_heads=96,
        num_key_value_heads=8,
        head_dim=128,
        partial_rotary_factor=0.5,
        moe_intermediate_size=1536,
        n_routed_experts=160,
        n_shared_experts=1,
        num_experts_per_tok=8,
        n_group=1,
        topk_group=1,
        rms_norm_eps=1e-5,
        rope_theta=1e6,
        routed_scaling_factor=2.5,
        max_position_embeddings=131072,
        attention_bias=True,
        use_qk_norm=True,
        first_k_dense_replace=3,
        norm_topk_prob=True,
        num_nextn_predict_layers=0,
        tie_word_embeddings=False,
        eos_token_id=(VOCABULARY - 1,),
        dtype="bfloat16",
        quantization=None,
    )
