"""Steps of fixed shapes give the results of plain ones, and what pads them harms nobody."""

import torch
from torch import Tensor

from glm_portable.backends import reference
from glm_portable.kernels import attention
from glm_portable.kernels.attention import attend
from glm_portable.ops import KVCache, Step, decode_step
from glm_portable.verify.cases.data import normal
from glm_portable.verify.metrics import faults
from tests.kernels.inputs import BF16, full
from tests.kernels.machine import Machine

CPU = torch.device("cpu")
SIZE, GROUPS, HEADS, SLOTS, PAGES = 16, 1, 4, 64, 48
SEQUENCES = [(700, list(range(0, 11))), (0, [20]), (63, [21]), (256, [30, 29, 28, 27, 26])]


def attended(
    machine: Machine, step: Step, q_BHC: Tensor, k_BGC: Tensor, v_BGC: Tensor
) -> tuple[Tensor, KVCache]:
    """Store and attend of one decode step over pages that were filled before."""
    pages = [machine.put(normal(PAGES, SLOTS, GROUPS, SIZE, seed=s).to(BF16)) for s in (1, 2)]
    cache = KVCache(pages[0], pages[1])
    angle = machine.put(torch.ones(len(q_BHC), 8, dtype=BF16))
    heads = [machine.put(x) for x in (q_BHC, k_BGC, v_BGC)]
    q_BHC = machine.ops.rope_store(*heads, angle, angle, cache, step)  # type: ignore[call-arg,arg-type]
    return machine.ops.attend(q_BHC, cache, step, 0.25), cache


@full
def test_bounds_on_the_host_change_no_bit(machine: Machine) -> None:
    """Bounds of 9,000 keys cut the launch into 32 splits; the longest sequence needs 3."""
    q, k, v = (normal(7, n, SIZE, seed=n + s).to(BF16) for s, n in enumerate((HEADS, 1, 1)))
    plain = Step.build([(cached, 1, pages) for cached, pages in SEQUENCES], SLOTS, machine.device)
    fixed = decode_step(SEQUENCES, 7, 9000, PAGES - 1, SLOTS, machine.device)
    expected, clean = attended(machine, plain, q[:4], k[:4], v[:4])
    got, padded = attended(machine, fixed, q, k, v)
    assert torch.equal(got[:4], expected)
    assert got[4:].isfinite().all()
    assert torch.equal(padded.k_PSGC[:-1], clean.k_PSGC[:-1])
    assert torch.equal(padded.v_PSGC[:-1], clean.v_PSGC[:-1])


@full
def test_a_sequence_with_more_splits_than_the_longest(machine: Machine) -> None:
    """8,192 keys are cut into 32 parts and 8,193 into 17: the launch must have room for 32."""
    lengths = [8192, 8193]
    rows = [(n - 1, 1, range(i * 129, (i + 1) * 129)) for i, n in enumerate(lengths)]
    step = Step.build(rows, SLOTS, CPU)
    k, v = (normal(258, SLOTS, 1, SIZE, seed=s).to(BF16) for s in (1, 2))
    cache, q = KVCache(k, v), normal(2, HEADS, SIZE, seed=3).to(BF16)
    exact = reference.attend(q.double(), KVCache(k.double(), v.double()), step, 0.25)
    plain = reference.attend(q, cache, step, 0.25)
    there = KVCache(machine.put(k), machine.put(v))
    here = Step.build(rows, SLOTS, machine.device)
    q = machine.put(q)
    got = attend(machine.launch, machine.target, q, there, here, 0.25).cpu()
    for row in (0, 1):
        assert faults(got[row], plain[row], exact[row]) == []


def test_no_shorter_sequence_has_more_splits() -> None:
    most = 0
    for length in (*range(1, 9000, 16), 16384, 16385, 131072, 202752):
        most = max(most, -(-length // attention.split_keys(length)))
        assert most <= attention.most_splits(length) <= attention.MOST_SPLITS
