"""npu:0 and npu:1 on host memory: the same numbers as on the host, and no mixing of devices."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from glm_portable.backends import ascend
from glm_portable.backends.ascend import AscendOps
from glm_portable.ops import KVCache, Step, Weight
from glm_portable.verify.cases.data import normal, quantised, weight
from glm_portable.virtual import npu
from glm_portable.virtual.npu.devices import Devices
from glm_portable.virtual.npu.machine import Machine
from glm_portable.virtual.npu.refusal import Refusal

BF16 = torch.bfloat16


@pytest.fixture
def devices() -> Iterator[Devices]:
    npu.connect("Ascend910_9391")
    with torch.inference_mode(), Devices(Machine("Ascend910_9391")) as mode:
        yield mode


def block(ops: AscendOps, kind: torch.dtype | None) -> Tensor:
    """Norm, attention over pages and experts on the device of `ops`."""

    def there(x: Tensor) -> Tensor:
        return x.to(ops.device)

    def packed(*shape: int, seed: int) -> Weight:
        if kind is None:
            w = weight(*shape, dtype=BF16, seed=seed)
        else:
            w = quantised(*shape, dtype=BF16, kind=kind, dynamic=True, seed=seed)
        scale = None if w.scale is None else there(w.scale)
        return ops.pack(Weight(there(w.data), BF16, scale, None, w.dynamic_activations))

    x, residual = there(normal(5, 128).bfloat16()), there(normal(5, 128, seed=1).bfloat16())
    y, residual = ops.rms_norm(x, there(torch.ones(128, dtype=BF16)), 1e-5, residual)
    q = ops.linear(y, packed(512, 128, seed=2)).view(5, 4, 128)
    step = Step.build([(0, 3, [2]), (0, 2, [1])], 16, ops.device)
    keys, values = (there(torch.zeros(4, 16, 2, 128, dtype=BF16)) for _ in range(2))
    cache = KVCache(keys, values)
    angle = there(normal(5, 64, seed=6).bfloat16())
    q = ops.rope_store(q, q[:, :2], q[:, 2:], angle, angle, cache, step)
    y = ops.linear(ops.attend(q, cache, step, 0.1).flatten(1), packed(128, 512, seed=3))
    experts = there(torch.tensor([[0, 1], [2, 3], [3, 0], [1, 2], [0, 3]], dtype=torch.int32))
    routing = there(torch.full((5, 2), 0.5))
    gate_up, down = packed(4, 256, 128, seed=4), packed(4, 128, 128, seed=5)
    return (ops.experts(y, gate_up, down, routing, experts) + residual).cpu()


@pytest.mark.parametrize("kind", [None, torch.int8], ids=["bf16", "w8a8"])
def test_a_block_on_a_device_has_the_bits_of_the_host(
    kind: torch.dtype | None, devices: Devices, a3: AscendOps
) -> None:
    on_device = ascend.virtual("Ascend910_9391", torch.ops.npu, torch.device("npu:0"))
    found = block(on_device, kind)
    assert devices.ran["npu::npu_grouped_matmul"] == 2
    assert devices.ran["npu::npu_fused_infer_attention_score"] == 1
    assert torch.equal(found, block(a3, kind))


def test_tensors_of_two_devices_do_not_meet(devices: Devices) -> None:
    a = torch.ones(4).to("npu:0")
    with pytest.raises(Refusal, match="its tensors are on cpu, npu:0, but must be on one"):
        a + torch.ones(4)
    assert (a + torch.tensor(1.0)).cpu().tolist() == [2.0] * 4
    assert a.device == torch.device("npu:0")


def test_a_view_shares_its_devices_memory(devices: Devices) -> None:
    a = torch.zeros(2, 3).to("npu:0")
    a[1].add_(5)
    assert a.cpu().tolist() == [[0.0] * 3, [5.0] * 3]
    copy = a.cpu()
    a.zero_()
    assert copy[1].tolist() == [5.0] * 3


def test_an_operator_without_semantics_is_named_on_a_device_too(devices: Devices) -> None:
    x = torch.zeros(1, 2, 3, 64, dtype=BF16).to("npu:0")
    angle = x[:, :, :1].contiguous()
    with pytest.raises(NotImplementedError, match="npu::npu_rotary_mul"):
        torch.ops.npu.npu_rotary_mul(x, angle, angle)
