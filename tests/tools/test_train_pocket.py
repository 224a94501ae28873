"""The trainer: its parts against plain recomputation, and a short training end to end."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch
import torch.nn.functional as F
from click.testing import CliRunner
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import AutoTokenizer, Glm4MoeForCausalLM

from glm_portable import pocket
from glm_portable.config import ModelConfig
from glm_portable.glm import GLM
from glm_portable.tasks import generate
from tools.pocket_training.data import RECIPE, Batches, Encoder, Phase, phase_at
from tools.pocket_training.export import POCKET, export, from_disk, largest_difference, to_disk
from tools.pocket_training.layers import silu_mul
from tools.pocket_training.loop import Budget, Trainer
from tools.pocket_training.moe import BIAS_OFFSET, Experts, Gate
from tools.pocket_training.network import Network
from tools.pocket_training.optimiser import orthogonalize, uses_muon
from tools.pocket_training.vocabulary import (
    CONTROL,
    TAGS,
    build_tokenizer,
    end_of_turn_ids,
    save_tokenizer,
)
from tools.train_pocket import main

TEMPLATE = (pocket.path() / "chat_template.jinja").read_text(encoding="utf-8")
VOCABULARY = 400
TINY: dict[str, Any] = {
    **POCKET,
    "vocab_size": VOCABULARY + len(CONTROL) + len(TAGS),
    "hidden_size": 32,
    "intermediate_size": 48,
    "moe_intermediate_size": 16,
    "head_dim": 8,
    "n_routed_experts": 6,
    "num_experts_per_tok": 2,
    "num_hidden_layers": 2,
}
SHORT = (Phase("short", 1.0, 120, ((1.0, {"family": "chat"}), (1.0, {"family": "strings"}))),)


@pytest.fixture(scope="module")
def tokenizer() -> tokenizers.Tokenizer:
    return build_tokenizer(TEMPLATE, chats=60, size=VOCABULARY)


@pytest.fixture(scope="module")
def raw(tokenizer: tokenizers.Tokenizer) -> dict[str, Any]:
    ends = end_of_turn_ids(tokenizer)
    return {**TINY, "pad_token_id": ends[0], "eos_token_id": ends}


@pytest.fixture(scope="module")
def config(raw: dict[str, Any]) -> ModelConfig:
    return ModelConfig.from_dict(raw)


def trainer(config: ModelConfig, tokenizer: tokenizers.Tokenizer, steps: int) -> Trainer:
    torch.manual_seed(0)
    batches = Batches(Encoder(tokenizer, TEMPLATE), seed=1, tokens=256, chats_per_chunk=20)
    network = Network(config)
    return Trainer(network, batches, Budget(steps=steps), recipe=SHORT, report=lambda _: None)


@pytest.fixture(scope="module")
def trained(config: ModelConfig, tokenizer: tokenizers.Tokenizer) -> Iterator[Trainer]:
    made = trainer(config, tokenizer, steps=60)
    made.run()
    yield made


def test_the_losses_fall(trained: Trainer) -> None:
    for losses in zip(*trained.losses, strict=True):  # of the next token, and of the MTP layer
        assert sum(losses[-5:]) / 5 < 0.9 * losses[0]


def test_the_biases_moved_by_the_load_and_kept_their_offset(trained: Trainer) -> None:
    for gate in trained.network.gates():
        bias = gate.e_score_correction_bias
        assert bias.std() > 0.001 and abs(bias.mean() - BIAS_OFFSET) < 0.2


@pytest.fixture(scope="module")
def exported(
    trained: Trainer,
    raw: dict[str, Any],
    tokenizer: tokenizers.Tokenizer,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    folder = tmp_path_factory.mktemp("exported")
    export(trained.average.tensors, raw, folder)
    save_tokenizer(tokenizer, folder, 8192)
    (folder / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")
    return folder


def test_the_export_computes_what_the_network_does(exported: Path) -> None:
    ids = torch.randint(VOCABULARY, (40,)).tolist()
    assert largest_difference(exported, ids) < 1e-4


def test_transformers_computes_what_the_network_does(exported: Path, config: ModelConfig) -> None:
    network = Network(config).eval()
    network.load_state_dict(from_disk(load_file(exported / "model.safetensors"), config))
    model = Glm4MoeForCausalLM.from_pretrained(exported, dtype=torch.float32)
    ids = torch.randint(VOCABULARY, (2, 30))
    with torch.no_grad():
        expected = model(ids).logits
        logits = network.lm_head(network.hidden(ids))
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=0)


def test_the_exported_names_and_types_are_those_of_the_shipped_checkpoint(exported: Path) -> None:
    def layout(path: Path) -> dict[str, str]:
        with safe_open(path / "model.safetensors", framework="pt") as file:
            names = file.keys()
            return {name: file.get_slice(name).get_dtype() for name in names}

    def kinds(found: dict[str, str], layers: int) -> set[tuple[str, str]]:
        mtp = f"model.layers.{layers}."
        return {(name.replace(mtp, "mtp."), dtype) for name, dtype in found.items()}

    ours, shipped = kinds(layout(exported), 2), kinds(layout(pocket.path()), 4)
    assert ours <= shipped
    missing = {name for name, _ in shipped - ours}
    assert all(
        ".experts." in n or n.startswith(("model.layers.2", "model.layers.3")) for n in missing
    )


def test_the_exported_folder_answers(exported: Path) -> None:
    glm = GLM.load(exported, backend="reference", dtype="float32")
    answer = glm.generate([{"role": "user", "content": "Hi"}], max_tokens=4, temperature=0.0)
    assert 1 <= len(answer.token_ids) <= 4


def test_disk_and_back_changes_nothing_but_the_rounding(config: ModelConfig) -> None:
    tensors = Network(config).state_dict()
    back = from_disk(to_disk(tensors), config)
    assert back.keys() == tensors.keys()
    for name, tensor in tensors.items():
        torch.testing.assert_close(back[name], tensor, atol=0, rtol=2**-8)


def test_resuming_goes_on_where_the_file_was_written(
    config: ModelConfig, tokenizer: tokenizers.Tokenizer, tmp_path: Path
) -> None:
    first = trainer(config, tokenizer, steps=3)
    first.save_to = tmp_path / "training.pt"
    first.run()
    second = trainer(config, tokenizer, steps=5)
    second.resume(tmp_path / "training.pt")
    assert second.position == first.position and second.position.step == 3
    assert second.optimiser.steps == 3
    for name, tensor in first.network.state_dict().items():
        assert torch.equal(second.network.state_dict()[name], tensor)
    second.run()
    assert second.position.step == 5 and second.position.tokens > first.position.tokens


def test_experts_and_their_gradients_equal_a_plain_loop(config: ModelConfig) -> None:
    torch.manual_seed(0)
    module = Experts(config).double()
    x = torch.randn(30, 32, dtype=torch.float64, requires_grad=True)
    chosen = torch.stack([torch.randperm(5)[:2] for _ in range(30)])  # nobody chooses the last
    weights = torch.rand(30, 2, dtype=torch.float64, requires_grad=True)

    def plain() -> torch.Tensor:
        rows = []
        for t in range(30):
            y = [
                w * F.linear(silu_mul(F.linear(x[t], module.gate_up_proj[e])), module.down_proj[e])
                for w, e in zip(weights[t], chosen[t].tolist(), strict=True)
            ]
            rows.append(y[0] + y[1])
        return torch.stack(rows)

    inputs = (x, weights, module.gate_up_proj, module.down_proj)
    outputs = module(x, weights, chosen), plain()
    direction = torch.randn_like(x)
    torch.testing.assert_close(*outputs)
    for ours, expected in zip(
        *(torch.autograd.grad((y * direction).sum(), inputs) for y in outputs), strict=True
    ):
        torch.testing.assert_close(ours, expected)


def test_balance_favours_the_experts_that_few_tokens_chose(config: ModelConfig) -> None:
    gate = Gate(config).train()
    gate.load_E = torch.tensor([9.0, 1, 1, 1, 1, 5])
    assert gate.balance(0.01) == 3.0
    change = gate.e_score_correction_bias - BIAS_OFFSET
    torch.testing.assert_close(change, torch.tensor([-0.01, 0.01, 0.01, 0.01, 0.01, -0.01]))
    assert not gate.load_E.any()


@pytest.mark.parametrize("shape", [(24, 40), (40, 24), (3, 16, 32)])
def test_muon_s_update_is_nearly_orthogonal(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    values = torch.linalg.svdvals(orthogonalize(torch.randn(shape)))
    assert 0.5 < values.min() and values.max() < 1.4


def test_only_maps_between_hidden_states_are_muon_s(config: ModelConfig) -> None:
    network = Network(config)
    adam = {n for n, p in network.named_parameters() if not uses_muon(n, p)}
    matrices = {n for n in adam if "norm" not in n and "bias" not in n}
    gates = {f"model.layers.{layer}.mlp.gate.weight" for layer in (1, 2)}
    assert matrices == {"model.embed_tokens.weight", "lm_head.weight", *gates}


def test_what_the_assistant_says_is_what_counts(tokenizer: tokenizers.Tokenizer) -> None:
    encoder = Encoder(tokenizer, TEMPLATE)
    for index in range(60):
        chat = generate(5, index)
        example = encoder(chat)
        written = tokenizer.decode(example.ids[example.written == 1].tolist(), False)
        answers = [m for m in chat.messages if m["role"] == "assistant"]
        asked = max(i for i, m in enumerate(chat.messages) if m["role"] == "user")
        if chat.thinking:
            answers = [m for m in chat.messages[asked:] if m["role"] == "assistant"]
        assert written.count("</think>") == len(answers)
        for answer in answers:
            assert answer["content"] in written
            assert answer["reasoning_content"] in written
            for call in answer.get("tool_calls", []):
                assert f"<tool_call>{call['function']['name']}\n" in written
        for message in chat.messages:
            if message["role"] == "user" and len(message["content"]) > 40:
                assert message["content"] not in written
        assert written.endswith("<|user|>")


def test_batches_are_the_same_for_the_same_seed_and_filled(
    tokenizer: tokenizers.Tokenizer,
) -> None:
    def batches(seed: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
        made = Batches(Encoder(tokenizer, TEMPLATE), seed, tokens=512, chats_per_chunk=30)
        return [made.next(SHORT[0]) for _ in range(6)]

    first = batches(1)
    for (ids, weights), (same_ids, same_weights) in zip(first, batches(1), strict=True):
        assert torch.equal(ids, same_ids) and torch.equal(weights, same_weights)
    assert any(a.tolist() != b.tolist() for (a, _), (b, _) in zip(first, batches(2), strict=True))
    for ids, weights in first:
        assert ids.shape == weights.shape and ids.numel() <= 512
        assert ids.shape[1] <= 120 and (weights == 1).any(1).all()


def test_the_phases_follow_each_other() -> None:
    assert [phase_at(p).name for p in (0.0, 0.3, 0.7, 0.9, 1.0)] == [
        "short chats",
        "all chats",
        "more short skills",
        "arithmetic and tools",
        "arithmetic and tools",
    ]
    assert all(abs(sum(share for share, _ in phase.parts) - 1) < 1e-9 for phase in RECIPE)


def test_the_saved_tokenizer_is_read_by_transformers(exported: Path) -> None:
    loaded = AutoTokenizer.from_pretrained(exported)
    text = "[gMASK]<sop><|user|>\nSend 12 to Oslo/nothink<|assistant|>\n<think></think>"
    ids = loaded(text)["input_ids"]
    assert loaded.decode(ids) == text
    assert loaded.convert_ids_to_tokens(ids)[:3] == ["[gMASK]", "<sop>", "<|user|>"]
    assert loaded.eos_token == loaded.pad_token == "<|endoftext|>"
    assert {"1", "2"} <= set(loaded.convert_ids_to_tokens(ids))  # a digit a token


def test_the_command_trains_the_pocket_model_and_checks_its_export(tmp_path: Path) -> None:
    options = ["--steps", "2", "--batch-tokens", "128", "--vocabulary-chats", "40"]
    run = CliRunner().invoke(main, [str(tmp_path / "out"), *options])
    assert run.exit_code == 0, run.output
    assert "largest difference to glm_portable's reference" in run.output
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    shipped = json.loads((pocket.path() / "config.json").read_text())
    assert written.keys() == shipped.keys()
    ids = {"eos_token_id", "pad_token_id"}
    assert all(written[key] == shipped[key] for key in written.keys() - ids)


def test_the_command_wants_to_know_how_long(tmp_path: Path) -> None:
    run = CliRunner().invoke(main, [str(tmp_path / "out")])
    assert run.exit_code == 2 and "--minutes, --steps" in run.output
