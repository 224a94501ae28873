"""A model whose next token is a hash of all tokens it finds in its cache.

It reads every token of a sequence back through the block table, so a wrong page, a stale slot, a
lost chunk or two sequences swapped change what it says. `Words` is a tokenizer to go with it.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from glm_portable import ops
from glm_portable.config import ModelConfig
from glm_portable.engine.core import EngineCore
from glm_portable.engine.limits import EngineLimits
from glm_portable.engine.logprobs import PromptLogprobs
from glm_portable.engine.request import OnDelta, Request
from glm_portable.engine.sampling import RowSampler
from glm_portable.engine.scheduler import Sequence as TokenSequence
from glm_portable.engine.stopping import AnswerText
from glm_portable.engine.types import SamplingParams
from glm_portable.ops import KVCache, Step

VOCAB = 40
EOS = 7
_MODULUS = 1_000_003


def prefix_hash(tokens: Iterable[int]) -> int:
    """Of the tokens and their order."""
    value = 1
    for token in tokens:
        value = (value * 31 + token + 1) % _MODULUS
    return value


def logits_of(hashes: Tensor, vocab_size: int = VOCAB) -> Tensor:
    """Logits in [-4, 4] as a function of each hash: (rows, vocab_size)."""
    return 4 * torch.sin(hashes[:, None].double() * torch.arange(1, vocab_size + 1)).float()


def answer(prompt: Sequence[int], count: int, eos: int | None = EOS) -> list[int]:
    """What the model says greedily, told without a cache."""
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(int(logits_of(torch.tensor([prefix_hash(tokens)])).argmax()))
        if tokens[-1] == eos:
            break
    return tokens[len(prompt) :]


class FakeModel:
    """Slots hold tokens; a hidden state is the hash of all tokens up to its own."""

    def __init__(self, vocab_size: int = VOCAB, eos: tuple[int, ...] = (EOS,)) -> None:
        self.config: ModelConfig = config(vocab_size, eos)
        self.ops = ops.load("reference")
        self.steps: list[list[int]] = []

    def allocate(self, pages: int, page_size: int) -> list[KVCache]:
        garbage = torch.full((pages, page_size, 1, 1), 999)
        return [KVCache(garbage, garbage.clone())]

    def forward(self, ids_T: Tensor, step: Step, caches: Sequence[KVCache]) -> Tensor:
        slots = caches[0].k_PSGC.view(-1)
        slots[step.slots_T] = ids_T
        size, begin = caches[0].k_PSGC.shape[1], 0
        self.steps.append([])
        hashes = []
        for b, (end, length) in enumerate(zip(step.query_ends, step.kv_lengths, strict=True)):
            pages = step.block_table_BP[b].tolist()
            tokens = [
                int(slots[pages[position // size] * size + position % size])
                for position in range(length)
            ]
            count = end - begin
            hashes += [prefix_hash(tokens[: length - count + 1 + t]) for t in range(count)]
            self.steps[-1].append(count)
            begin = end
        return torch.tensor(hashes)[:, None]

    def logits(self, hidden_TD: Tensor) -> Tensor:
        return logits_of(hidden_TD[:, 0], self.config.vocab_size)


def config(vocab_size: int, eos: tuple[int, ...]) -> ModelConfig:
    sizes: dict[str, Any] = dict.fromkeys(
        "hidden_size intermediate_size num_hidden_layers num_attention_heads head_dim n_group "
        "num_key_value_heads partial_rotary_factor moe_intermediate_size n_routed_experts "
        "n_shared_experts num_experts_per_tok topk_group rms_norm_eps rope_theta "
        "routed_scaling_factor".split(),
        1,
    )
    return ModelConfig(
        **sizes,
        vocab_size=vocab_size,
        max_position_embeddings=64,
        attention_bias=False,
        use_qk_norm=False,
        first_k_dense_replace=0,
        norm_topk_prob=True,
        num_nextn_predict_layers=0,
        tie_word_embeddings=False,
        eos_token_id=eos,
        dtype="float32",
        quantization=None,
    )


def word(token_id: int) -> str:
    """Two letters and a space, so that stop strings can lie across tokens."""
    return f"{chr(97 + token_id // 26)}{chr(97 + token_id % 26)} "


class Words:
    """Token n is `word(n)`. The text of a token is complete when the next one is known."""

    vocab_size = VOCAB

    def stream(self) -> "WordStream":
        return WordStream()


class WordStream:
    def __init__(self) -> None:
        self._waiting = ""

    def add(self, ids: Iterable[int]) -> str:
        text = self._waiting + "".join(map(word, ids))
        self._waiting = text[-1:]
        return text[:-1]

    def flush(self) -> str:
        waiting, self._waiting = self._waiting, ""
        return waiting


def limits(**overrides: Any) -> EngineLimits:
    usual: dict[str, Any] = {
        "max_model_len": 64,
        "max_num_seqs": 8,
        "max_num_batched_tokens": 64,
        "num_pages": 64,
        "page_size": 4,
    }
    return EngineLimits(**(usual | overrides))


def request(
    name: str, prompt: Sequence[int], params: SamplingParams, on_delta: OnDelta, max_length: int
) -> Request:
    """A request for an EngineCore that a test steps by hand."""
    eos = frozenset() if params.ignore_eos else frozenset((EOS,))
    return Request(
        params=params,
        on_delta=on_delta,
        sequence=TokenSequence(name, list(prompt), max_length),
        num_prompt_tokens=len(prompt),
        eos_ids=eos,
        text=AnswerText(WordStream(), params.stop),
        row=RowSampler(params, params.seed or 0, eos, prompt),
        prompt_logprobs=PromptLogprobs.of(prompt, params.prompt_logprobs, VOCAB),
    )


def core(model: FakeModel, **overrides: Any) -> EngineCore:
    return EngineCore(model, limits(**overrides), VOCAB)
