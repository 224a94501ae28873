"""The roofline's counts against published parameter counts and a model counted by hand."""

import json
from pathlib import Path

import pytest

from glm_portable.bench import limits
from glm_portable.config import ModelConfig

PUBLISHED = json.loads(
    (Path(__file__).parents[1] / "data" / "published_configs.json").read_text(encoding="utf-8")
)


def published(name: str) -> ModelConfig:
    raw = next(config for key, config in PUBLISHED.items() if key.split("/")[-1] == name)
    return ModelConfig.from_dict(raw)


@pytest.mark.parametrize(
    ("name", "active", "head"), [("GLM-4.5", 32.08, 0.776), ("GLM-4.5-Air", 12.18, 0.621)]
)
def test_active_weights_of_the_published_models(name: str, active: float, head: float) -> None:
    config = published(name)
    sparse = config.num_hidden_layers - config.first_k_dense_replace
    chosen = sparse * config.num_experts_per_tok
    numbers = limits.decode_bytes(config, chosen, 1)
    assert numbers / 1e9 == pytest.approx(active + head, abs=0.01)
    assert limits.head_weights(config) / 1e9 == pytest.approx(head, abs=0.001)
    # One token that looks at nothing multiplies each of those weights once.
    assert limits.operations(config, 1, 1, 0) == pytest.approx(2 * numbers)


def test_a_prefill_reads_every_expert_and_attends_to_pairs() -> None:
    config = published("GLM-4.5-Air")
    total = limits.prefill_bytes(config, 1) + config.vocab_size * config.hidden_size  # embedding
    assert total == pytest.approx(106_852_251_264, rel=1e-4)  # norms and biases are not counted
    attention = limits.operations(config, 4, 1, 10) - limits.operations(config, 4, 1, 0)
    # Per pair, head and dimension: one product for the score, one for the value.
    assert attention == 46 * 10 * 96 * 128 * 2 * 2


def test_the_slower_of_memory_and_processor_is_the_limit() -> None:
    machine = limits.Machine(bandwidth=100.0, flops=1000.0)
    assert machine.tokens_per_second(8, 200.0, 100.0) == 4  # 2 s of reading
    assert machine.tokens_per_second(8, 100.0, 4000.0) == 2  # 4 s of computing
