"""How large the cache is made."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from glm_portable.engine import limits
from glm_portable.engine.limits import EngineLimits, default_limits, page_bytes, step_shape
from glm_portable.errors import UsageError
from glm_portable.ops import KVCache
from tests.engine.fake_model import config

CONFIG = replace(
    config(vocab_size=10, eos=(1,)),
    num_hidden_layers=92,
    num_nextn_predict_layers=0,
    num_key_value_heads=8,
    head_dim=128,
    max_position_embeddings=1000,
)


def test_bytes_of_a_token_are_those_of_the_published_model() -> None:
    """GLM-4.5 in BF16 keeps 376,832 bytes a token in its 92 layers."""
    assert page_bytes(CONFIG, 1, itemsize=2) == 376_832
    with_mtp = replace(CONFIG, num_nextn_predict_layers=1)
    assert page_bytes(with_mtp, 16, itemsize=2) == 16 * 376_832 * 93 // 92


def test_bytes_of_a_page_are_those_the_cache_allocates() -> None:
    cache = KVCache.allocate(CONFIG, 3, 16, torch.bfloat16, torch.device("cpu"))
    size = cache.k_PSGC.nbytes + cache.v_PSGC.nbytes
    assert size * CONFIG.num_hidden_layers == 3 * page_bytes(CONFIG, 16, itemsize=2)


def test_the_cache_holds_a_window_for_each_sequence() -> None:
    made = default_limits(CONFIG, 2, max_num_seqs=4, memory_bytes=2**50)
    assert made == EngineLimits(1000, 4, 2048, num_pages=4 * 63, page_size=16)


def test_memory_bounds_the_cache() -> None:
    page = page_bytes(CONFIG, 16, 2)
    made = default_limits(CONFIG, 2, memory_bytes=100 * page + page - 1)
    assert made.num_pages == 100
    assert default_limits(CONFIG, 2, memory_bytes=63 * page).num_pages == 63


def test_a_window_that_does_not_fit_is_refused_and_one_that_does_is_named() -> None:
    page = page_bytes(CONFIG, 16, 2)
    with pytest.raises(UsageError, match=r"1000 tokens .* .at most 992 fits") as refusal:
        default_limits(CONFIG, 2, memory_bytes=62 * page)
    assert str(refusal.value).count("MiB") == 2
    assert default_limits(CONFIG, 2, memory_bytes=62 * page, max_model_len=992).num_pages == 62


def test_a_window_above_the_models_is_refused() -> None:
    with pytest.raises(UsageError, match="max_model_len 1001 exceeds .* 1000"):
        default_limits(CONFIG, 2, max_model_len=1001)


@pytest.mark.parametrize("field", ["max_num_seqs", "max_num_batched_tokens", "max_model_len"])
def test_limits_below_one_are_refused(field: str) -> None:
    numbers: Any = {field: 0}
    with pytest.raises(UsageError, match=f"{field} is 0; it must be at least"):
        default_limits(CONFIG, 2, memory_bytes=2**50, **numbers)


def test_a_containers_limit_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert list(limits._cgroup_memory(tmp_path)) == []
    (tmp_path / "memory.current").write_text("900\n")
    (tmp_path / "memory.stat").write_text("anon 300\nactive_file 350\ninactive_file 250\n")
    (tmp_path / "memory.max").write_text("max\n")
    assert list(limits._cgroup_memory(tmp_path)) == []
    (tmp_path / "memory.max").write_text("1000\n")
    assert list(limits._cgroup_memory(tmp_path)) == [700]
    assert list(limits._cgroup_limit(tmp_path)) == [1000]
    monkeypatch.setattr(limits, "_machine_memory", lambda field: 500)
    monkeypatch.setattr(limits, "_cgroup_memory", lambda _: iter([200]))
    assert limits.available_memory() == 200
    monkeypatch.setattr(limits, "_cgroup_limit", lambda _: iter([300]))
    assert limits.total_memory() == 300


def test_memory_of_this_machine_is_plausible() -> None:
    assert 2**20 < limits.available_memory() <= limits.total_memory() < 2**50


def test_a_step_has_a_token_for_each_sequence() -> None:
    shape = step_shape(CONFIG, max_num_batched_tokens=64)
    assert (shape.max_num_seqs, shape.max_num_batched_tokens) == (64, 64)
    assert step_shape(CONFIG, max_num_seqs=3000).max_num_batched_tokens == 3000
    with pytest.raises(UsageError, match="max_num_seqs 65 exceeds max_num_batched_tokens 64"):
        step_shape(CONFIG, max_num_batched_tokens=64, max_num_seqs=65)


def test_without_chunks_a_step_holds_the_longest_prompt() -> None:
    long = replace(CONFIG, max_position_embeddings=5000)
    made = default_limits(long, 2, memory_bytes=2**50, enable_chunked_prefill=False)
    assert made.max_num_batched_tokens == 5000
    with pytest.raises(UsageError, match="max_num_batched_tokens is 4000 and max_model_len 5000"):
        default_limits(
            long, 2, memory_bytes=2**50, enable_chunked_prefill=False, max_num_batched_tokens=4000
        )


def test_a_policy_is_known() -> None:
    with pytest.raises(UsageError, match="scheduling_policy 'lifo' is not one of fcfs, priority"):
        EngineLimits(10, 1, 1, 1, scheduling_policy="lifo")


def test_pages_may_be_counted_by_hand() -> None:
    made = default_limits(CONFIG, 2, memory_bytes=1, num_pages=63)
    assert made.num_pages == 63
    with pytest.raises(UsageError, match="62 pages .* hold 992 tokens, less than one window"):
        default_limits(CONFIG, 2, memory_bytes=1, num_pages=62)


def test_a_refusal_says_how_the_memory_came_about_and_how_to_have_more() -> None:
    with pytest.raises(UsageError, match=r"are available \(all\); lower max_model_len or sell"):
        default_limits(CONFIG, 2, memory_bytes=-5, account="all", advice="sell")
