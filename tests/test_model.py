"""The model on the reference backend against transformers' own GLM-4.5, flag by flag."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import Glm4MoeForCausalLM
from transformers.modeling_layers import MtpModel

from glm_portable import ops
from glm_portable.checkpoint import Checkpoint
from glm_portable.config import ModelConfig
from glm_portable.model import Model, Trace
from glm_portable.ops import KVCache, Step
from tests.random_checkpoint import Config, random_tensors, small_config, write_files

TOLERANCE = 1e-4
PAGE = 4
IDS = torch.randint(0, 250, (24,), generator=torch.Generator().manual_seed(7))

GLM45 = {"use_qk_norm": True, "routed_scaling_factor": 2.5, "first_k_dense_replace": 3}
CONFIGS: dict[str, tuple[Config, tuple[float, float]]] = {
    "air": (small_config(), (-0.1, 0.1)),
    "glm45": (small_config(num_hidden_layers=5, **GLM45), (6.8, 7.1)),
    "groups": (small_config(n_group=4, topk_group=2, use_qk_norm=True), (-0.1, 0.1)),
    "unnormalised": (small_config(norm_topk_prob=False, routed_scaling_factor=2.5), (-0.1, 0.1)),
    "large bias": (small_config(num_experts_per_tok=4), (12.0, 35.0)),
    "tied scores": (small_config(n_routed_experts=16, num_experts_per_tok=4), (0.5, 0.5)),
    "no bias": (small_config(attention_bias=False, n_shared_experts=2), (-0.1, 0.1)),
    "full rotary": (small_config(partial_rotary_factor=1.0, rope_theta=10000), (-0.1, 0.1)),
    "tied head": (small_config(tie_word_embeddings=True), (-0.1, 0.1)),
}


@dataclass
class Pair:
    """The same checkpoint in both implementations, in float32."""

    ours: Model
    theirs: Any
    ties: bool

    def run(self, ids: Tensor, trace: Trace | None = None) -> tuple[Tensor, Tensor]:
        """Our hidden states and logits of one sequence, prefilled whole."""
        step, caches = prefill(self.ours, len(ids))
        hidden = self.ours.forward(ids, step, caches, trace)
        return hidden, self.ours.logits(hidden)


def prefill(model: Model, length: int) -> tuple[Step, list[KVCache]]:
    pages = -(-length // PAGE)
    order = list(range(pages, 0, -1))  # page 0 stays unused, and no page lies where it would first
    return Step.build([(0, length, order)], PAGE, model.ops.device), model.allocate(pages + 1, PAGE)


def load_ours(
    folder: Path, backend: str = "reference", dtype: torch.dtype = torch.float32
) -> Model:
    config = ModelConfig.load(folder)
    return Model(config, ops.load(backend), Checkpoint(folder, config, dtype=dtype))


def duplicate_experts(tensors: dict[str, Tensor]) -> None:
    """Make expert 2i + 1 a copy of expert 2i: every token has exact ties, often at the boundary."""
    for name in list(tensors):
        if name.endswith(("mlp.gate.weight", "e_score_correction_bias")):
            tensors[name][1::2] = tensors[name][::2]
        elif ".experts." in name:
            head, _, tail = name.partition(".experts.")
            expert, _, part = tail.partition(".")
            tensors[name] = tensors[f"{head}.experts.{int(expert) // 2 * 2}.{part}"].clone()


@pytest.fixture(scope="module", params=CONFIGS, ids=str)
def pair(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Pair]:
    config, bias_range = CONFIGS[request.param]
    tensors = random_tensors(config, bias_range=bias_range)
    if request.param == "tied scores":
        duplicate_experts(tensors)
    folder = tmp_path_factory.mktemp("checkpoint")
    write_files(folder, config, tensors)
    theirs: Any = Glm4MoeForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    )
    with torch.inference_mode():
        yield Pair(load_ours(folder), theirs.eval(), request.param == "tied scores")


def test_logits_and_residual_streams_match(pair: Pair) -> None:
    trace = Trace()
    hidden, logits = pair.run(IDS, trace)
    expected = pair.theirs(IDS[None], output_hidden_states=True)
    torch.testing.assert_close(logits, expected.logits[0], atol=TOLERANCE, rtol=0)
    assert len(trace.residuals) == pair.ours.config.num_hidden_layers
    for ours, theirs in zip([*trace.residuals, hidden], expected.hidden_states, strict=True):
        torch.testing.assert_close(ours, theirs[0], atol=TOLERANCE, rtol=0)


def test_routed_experts_and_weights_match(pair: Pair) -> None:
    trace, routed = Trace(), {}
    for index, layer in enumerate(pair.theirs.model.layers):
        if hasattr(layer.mlp, "gate"):
            layer.mlp.gate.register_forward_hook(
                lambda _, __, output, index=index: routed.update({index: output[1:]})
            )
    pair.run(IDS, trace)
    pair.theirs(IDS[None])
    assert trace.routed.keys() == routed.keys() and routed
    for index, (weights, experts) in trace.routed.items():
        ours = torch.zeros(len(IDS), pair.ours.config.n_routed_experts)
        theirs = ours.clone()
        ours.scatter_(1, experts.long(), weights)
        theirs.scatter_(1, routed[index][1], routed[index][0])
        if pair.ties:
            ours, theirs = (x[:, ::2] + x[:, 1::2] for x in (ours, theirs))
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


def test_greedy_tokens_match(pair: Pair) -> None:
    prompt, new = IDS[:9], 32
    theirs = pair.theirs.generate(
        prompt[None], max_new_tokens=new, do_sample=False, eos_token_id=None, pad_token_id=0
    )[0]
    ids = prompt.tolist()
    pages = -(-(len(ids) + new) // PAGE)
    caches, order = pair.ours.allocate(pages, PAGE), list(range(pages))
    cached = 0
    while len(ids) < len(prompt) + new:
        step = Step.build([(cached, len(ids) - cached, order)], PAGE, pair.ours.ops.device)
        hidden = pair.ours.forward(torch.tensor(ids[cached:]), step, caches)
        cached = len(ids)
        ids.append(int(pair.ours.logits(hidden[-1:]).argmax()))
    assert ids == theirs.tolist()


def test_mtp_logits_match(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    layers = pair.ours.config.num_hidden_layers
    pattern = [rf"model\.layers\.{layers}.*"]
    monkeypatch.setattr(pair.theirs, "_keys_to_ignore_on_load_unexpected", pattern)
    their_mtp: Any = MtpModel.from_pretrained(pair.theirs)
    following = IDS[1:][None]
    positions = torch.arange(1, len(IDS))[None]
    causal = torch.full((len(IDS) - 1,) * 2, float("-inf")).triu(1)[None, None]
    expected = their_mtp.layers[0](
        inputs_embeds=pair.theirs.model.embed_tokens(following),
        previous_hidden_state=pair.theirs(IDS[None], output_hidden_states=True).hidden_states[-1][
            :, :-1
        ],
        position_embeddings=pair.theirs.model.rotary_emb(torch.zeros(1), positions),
        attention_mask=causal,
        position_ids=positions,
        past_key_values=None,
    )
    hidden, _ = pair.run(IDS[:-1])
    assert pair.ours.mtp is not None
    step, caches = prefill(pair.ours, len(IDS) - 1)
    ours = pair.ours.mtp(IDS[1:], hidden, step, caches[-1])
    torch.testing.assert_close(ours, expected[0], atol=TOLERANCE, rtol=0)
    theirs_logits = pair.theirs.lm_head(expected[0])
    torch.testing.assert_close(
        pair.ours.mtp_logits(ours), theirs_logits, atol=5 * TOLERANCE, rtol=0
    )
