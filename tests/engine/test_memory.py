"""What the KV cache may have of a device's memory, and what a step is thought to need of it."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from glm_portable.engine.limits import StepShape
from glm_portable.engine.memory import MemoryOptions, estimated_step, measured_step
from glm_portable.errors import UsageError
from glm_portable.glm import GLM
from glm_portable.ops import KVCache, Step
from tests.engine.fake_model import FakeModel

MIB = 2**20


def size(total: int, free: int, step: int, on_host: bool = False, **given: Any) -> int:
    return MemoryOptions(**given).budget(total, free, step, on_host).size


def test_shares_of_the_device() -> None:
    """1000 bytes, of which 300 are in use and a step takes 50."""
    device = (1000, 700, 50)
    assert size(*device) == 900 - 300 - 50
    assert size(*device, gpu_memory_utilization=0.5) == 500 - 300 - 50
    assert size(*device, mem_fraction_static=0.5) == 500 - 300
    assert size(*device, kv_cache_memory=123) == 123


def test_a_share_never_takes_what_a_step_needs_or_others_have() -> None:
    assert size(1000, 700, 50, gpu_memory_utilization=1.0) == 650
    assert size(1000, 700, 50, mem_fraction_static=1.0) == 650
    assert size(1000, 700, 50, gpu_memory_utilization=0.2) < 0


def test_on_the_host_half_of_what_is_free_or_a_share_of_all() -> None:
    assert size(1000, 700, 50, on_host=True) == 325
    assert size(1000, 700, 50, on_host=True, gpu_memory_utilization=0.5) == 150


@pytest.mark.parametrize(
    "given, message",
    [
        (
            {"kv_cache_memory": 1, "gpu_memory_utilization": 0.5},
            "--kv-cache-memory and --gpu-memory-utilization each say .* give one",
        ),
        ({"gpu_memory_utilization": 0.5, "mem_fraction_static": 0.5}, "give one of them"),
        ({"num_gpu_blocks_override": 5, "mem_fraction_static": 0.5}, "give one of them"),
        ({"gpu_memory_utilization": 1.5}, "--gpu-memory-utilization is 1.5; .* at most 1"),
        ({"mem_fraction_static": 0.0}, "--mem-fraction-static is 0.0; .* above 0"),
        ({"kv_cache_memory": 0}, "--kv-cache-memory is 0; .* at least 1"),
        ({"num_gpu_blocks_override": -1}, "--num-gpu-blocks-override is -1"),
    ],
)
def test_what_contradicts_or_means_nothing_is_refused(given: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        MemoryOptions(**given)


class Accelerator:
    """Torch's accelerator as far as it is asked for: every step takes 70 bytes."""

    def __init__(self) -> None:
        self.allocated, self.peak = 1000, 5000

    def empty_cache(self) -> None:
        pass

    def reset_peak_memory_stats(self) -> None:
        self.peak = self.allocated

    def memory_allocated(self) -> int:
        return self.allocated

    def max_memory_allocated(self) -> int:
        return self.peak


class Recording(FakeModel):
    def __init__(self, accelerator: Accelerator) -> None:
        super().__init__()
        self.accelerator, self.logit_rows = accelerator, 0

    def forward(self, ids_T: Tensor, step: Step, caches: Sequence[KVCache]) -> Tensor:
        assert len(caches[0].k_PSGC) == 1
        self.accelerator.peak = self.accelerator.allocated + len(ids_T)
        return super().forward(ids_T, step, caches)

    def logits(self, hidden_TD: Tensor) -> Tensor:
        self.logit_rows = len(hidden_TD)
        return super().logits(hidden_TD)


def test_the_largest_step_is_computed_to_measure_it(monkeypatch: pytest.MonkeyPatch) -> None:
    accelerator = Accelerator()
    monkeypatch.setattr(torch, "accelerator", accelerator)
    model = Recording(accelerator)
    assert measured_step(model, StepShape(32, 8, 70), page_size=4) == 70
    assert model.steps == [[32, 32, 6]] and model.logit_rows == 8
    measured_step(model, StepShape(32, 8, 70), page_size=4, num_drafts=3)
    assert model.logit_rows == 32
    measured_step(model, StepShape(32, 8, 16), page_size=4, num_drafts=3)
    assert model.logit_rows == 16


def test_where_torch_cannot_tell_the_step_is_not_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    class Silent(Accelerator):
        def memory_allocated(self) -> int:
            raise RuntimeError("not implemented here")

    monkeypatch.setattr(torch, "accelerator", Silent())
    model = Recording(Silent())
    assert measured_step(model, StepShape(32, 8, 70), page_size=4) is None and model.steps == []


def test_the_estimate_is_above_what_a_step_allocates_and_not_far() -> None:
    """Measured by torch's profiler, which sees the tensors that live at the same time."""
    glm = GLM.load(backend="cpu", dtype="float32")
    shape = StepShape(1024, 64, 1024)
    ids = torch.arange(1024) % 1000
    step = Step.build([(0, 1024, range(64))], 16, torch.device("cpu"))
    caches = glm.model.allocate(64, 16)
    with torch.inference_mode(), torch.profiler.profile(profile_memory=True) as profile:
        glm.model.logits(glm.model.forward(ids, step, caches)[:64])
    used = peak = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            used += event.nbytes()
            peak = max(peak, used)
    assert peak > MIB, "nothing was seen"
    assert peak < estimated_step(glm.model.config, 4, shape) < 8 * peak


def test_limits_say_what_was_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    glm = GLM.load(backend="cpu")
    monkeypatch.setattr("glm_portable.glm.available_memory", lambda: 300 * MIB)
    monkeypatch.setattr("glm_portable.glm.total_memory", lambda: 1000 * MIB)
    with pytest.raises(UsageError, match=r"0 MiB are available \(60% of 1,000 MiB, less 700") as no:
        glm.limits(gpu_memory_utilization=0.6)
    assert str(no.value).endswith("or raise --gpu-memory-utilization.")
    with pytest.raises(
        UsageError, match=r"lower max_model_len \(at most \d+ fits\) or free memory"
    ):
        monkeypatch.setattr("glm_portable.glm.available_memory", lambda: 60 * MIB)
        glm.limits()
    with pytest.raises(UsageError, match="does not fit into the 60 MiB that are free"):
        glm.limits(memory_bytes=200 * MIB)


def test_pages_of_a_byte_hold_twice_the_tokens() -> None:
    plain, fp8 = (
        GLM.load(backend="cpu", kv_cache_dtype=kind, on_note=lambda note: None)
        for kind in ("auto", "fp8")
    )
    one, two = (glm.limits(memory_bytes=32 * MIB).num_pages for glm in (plain, fp8))
    assert two == 2 * one
    for glm, pages in ((plain, one), (fp8, two)):
        allocated = glm.model.allocate(1, 16)
        each = sum(cache.k_PSGC.nbytes + cache.v_PSGC.nbytes for cache in allocated)
        assert 0 <= 32 * MIB - pages * each < each
