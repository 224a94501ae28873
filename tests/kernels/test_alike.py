"""Deterministic inference on GPUs: no bit of a token depends on the tokens beside it."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from glm_portable import ops
from glm_portable.backends._gpu import Packed
from glm_portable.backends._gpu_alike import AlikeOps
from glm_portable.checkpoint import Checkpoint
from glm_portable.config import ModelConfig
from glm_portable.engine.engine import Engine
from glm_portable.engine.types import SamplingParams
from glm_portable.kernels.tiles import Tile
from glm_portable.model import Model
from glm_portable.ops import KVCache, Ops, Step, Weight
from glm_portable.verify.cases import named
from glm_portable.verify.cases.data import normal, on, quantised, weight
from glm_portable.verify.suite.ops import check
from tests.engine.fake_model import Words, limits
from tests.kernels.inputs import BF16, FP8, fp8, full
from tests.kernels.machine import Machine
from tests.random_checkpoint import small_config, write_checkpoint

KINDS: dict[str, dict[str, Any]] = {
    "fp8": {}, "w8a8": {"dynamic": True}, "blocks": {"dynamic": True, "block": (64, 64)},
}  # fmt: skip
KINDS_OF_WEIGHTS = [
    "bf16",
    pytest.param("w8a8", marks=fp8),
    *(pytest.param(kind, marks=[fp8, full]) for kind in ("fp8", "blocks")),
]


def alike(machine: Machine) -> Ops:
    return ops.promising(machine.ops)


def stored(backend: Ops, kind: str, *shape: int) -> Weight:
    plain = kind == "bf16"
    w = (
        weight(*shape, dtype=BF16)
        if plain
        else quantised(*shape, dtype=BF16, kind=FP8, **KINDS[kind])
    )
    return backend.pack(on(backend, w))


def same_alone(run: Callable[[slice], Tensor], together: Tensor, rows: Sequence[slice]) -> bool:
    """Whether some rows of a step have the same bits as steps of their own."""
    return all(torch.equal(bits(run(some)), bits(together[some])) for some in rows)


def bits(x: Tensor) -> Tensor:
    return x.contiguous().view(torch.uint8)


@pytest.mark.parametrize("kind", KINDS_OF_WEIGHTS)
def test_products_with_a_weight(machine: Machine, kind: str) -> None:
    """Of more rows than a tile has; 152 is neither a whole number of steps along K nor of 16 bytes'
    codes. In bf16 few sums in another order would show: the result is float32."""
    backend = alike(machine)
    w = replace(stored(backend, kind, 48, 152), dtype=torch.float32)
    x = machine.put(normal(35, 152, outliers=True).to(BF16))

    def run(rows: slice) -> Tensor:
        return backend.linear(x[rows].clone(), w)

    rows = [slice(0, 1), slice(34, 35), slice(16, 33), slice(0, 0)]
    assert same_alone(run, run(slice(0, 35)), rows)


@pytest.mark.parametrize("kind", [pytest.param("bf16", marks=full), *KINDS_OF_WEIGHTS[1:]])
def test_experts(machine: Machine, kind: str) -> None:
    """The first is everybody's and fills two tiles; others are a few tokens'."""
    backend = alike(machine)
    gate_up, down = (stored(backend, kind, 4, *shape) for shape in ((128, 64), (64, 64)))
    x = machine.put(normal(35, 64).to(BF16))
    experts = torch.tensor([[0, 1 + t % 3] for t in range(35)], dtype=torch.int32)
    experts, weights = machine.put(experts), machine.put(normal(35, 2, seed=5).abs())

    def run(rows: slice) -> Tensor:
        return backend.experts(x[rows], gate_up, down, weights[rows], experts[rows])

    rows = [slice(0, 1), slice(34, 35), slice(9, 12)]
    assert same_alone(run, run(slice(0, 35)), rows)


def test_the_router(machine: Machine) -> None:
    """One token and a multiple of 16 are what the compiler would know of an argument."""
    backend, cfg = alike(machine), small_config(n_routed_experts=16, num_experts_per_tok=4)
    config = ModelConfig.from_dict(cfg)
    x = machine.put(normal(17, 576).to(BF16))
    gate, bias = machine.put(normal(16, 576, seed=1)), machine.put(normal(16, seed=2))
    weights, experts = backend.route(x, gate, bias, config)
    for rows in (slice(0, 1), slice(16, 17), slice(1, 17)):
        some, chosen = backend.route(x[rows], gate, bias, config)
        assert torch.equal(bits(some), bits(weights[rows])) and torch.equal(chosen, experts[rows])


CACHED, NEW, SLOTS = 308, 20, 64


def cut(
    machine: Machine, attend: Any, ends: Sequence[int], dtype: torch.dtype, pages: torch.dtype
) -> Tensor:
    """The attention of tokens CACHED to CACHED + NEW, in steps that end behind so many of them."""
    k, v = (machine.put(normal(8, SLOTS, 1, 16, seed=s).to(pages)) for s in (1, 2))
    q = machine.put(normal(NEW, 4, 16, seed=3).to(dtype))
    found = []
    for begin, end in zip((0, *ends), ends, strict=False):
        row = (CACHED + begin, end - begin, [5, 2, 7, 1, 3, 6])
        step = Step.build([row], SLOTS, machine.device)
        found.append(attend(q[begin:end], KVCache(k, v, 0.5, 0.25), step, 0.25))
    return torch.cat(found)


@fp8
@pytest.mark.parametrize(
    ("dtype", "kind"),
    [("bfloat16", ""), ("bfloat16", "fp8"), pytest.param("float32", "", marks=full)],
)
def test_attention_however_a_prompt_is_cut(machine: Machine, dtype: str, kind: str) -> None:
    """A tile has 16 queries, 308 to 323 of the first step. Key 320 begins a block, which is hidden
    from the first of them, and is there for none that is alone."""
    types = getattr(torch, dtype), machine.target.fp8 if kind else getattr(torch, dtype)
    backend = alike(machine)
    whole = cut(machine, backend.attend, [NEW], *types)
    for ends in ([1, 2, 12, NEW], [11, 13, NEW - 1, NEW]):
        assert torch.equal(bits(cut(machine, backend.attend, ends, *types)), bits(whole))


@full
def test_attention_that_decodes_in_another_way_is_noticed(machine: Machine) -> None:
    """The kernel of every day splits the keys of short queries."""
    ends = [11, 12, NEW]
    whole, parts = (cut(machine, machine.ops.attend, e, BF16, BF16) for e in ([NEW], ends))
    assert not torch.equal(bits(parts), bits(whole))


def test_attention_of_tokens_among_other_sequences(machine: Machine) -> None:
    backend = alike(machine)
    k, v = (machine.put(normal(8, SLOTS, 1, 16, seed=s).to(BF16)) for s in (1, 2))
    layout = [(70, 1, [1, 2]), (0, 9, [3]), (129, 3, [4, 5, 6]), (5, 1, [7])]
    q = machine.put(normal(14, 4, 16, seed=3).to(BF16))

    def run(some: list[tuple[int, int, list[int]]], rows: Tensor) -> Tensor:
        return backend.attend(rows, KVCache(k, v), Step.build(some, SLOTS, machine.device), 0.25)

    together, begin = run(layout, q), 0
    for one in layout:
        rows = slice(begin, begin + one[1])
        assert torch.equal(bits(run([one], q[rows])), bits(together[rows]))
        begin += one[1]


CASES = ["attend: nine queries", "linear: odd widths"]
ALL = ["attend: mixed", "experts: 4 tokens", "linear: fp8, dynamic activations, odd height",
       "rms_norm: odd width", "rope_store: after the norm", "silu_mul: odd width"]  # fmt: skip


@pytest.mark.parametrize("case", CASES + [pytest.param(case, marks=full) for case in ALL])
def test_verify_ops_finds_nothing(machine: Machine, case: str) -> None:
    """Neither in the numbers nor in the promise."""
    (found,) = check(alike(machine), [named(*case.split(": "))])
    assert found.findings == () and found.measures["batch_invariant"] == 1


class ByRows(AlikeOps):
    """A tuned table would do so: another step along K for one row."""

    def _tile(self, packed: Packed, tokens: int, chosen: int) -> Tile:
        tile = super()._tile(packed, tokens, chosen)
        return replace(tile, block_k=tile.block_k // 2) if tokens == 1 else tile


@full
@fp8
def test_a_tile_that_follows_the_rows_is_noticed(machine: Machine) -> None:
    honest = machine.ops
    wrong = ByRows(honest.name, honest.device, honest.target, honest.launch)
    (found,) = check(wrong, [named("linear", "fp8 blocks with a rest")], dtype=torch.float32)
    assert "against the promise" in " ".join(found.findings)


GREEDY = SamplingParams(temperature=0, max_tokens=3, logprobs=2, ignore_eos=True)
DRAWN = replace(GREEDY, temperature=1, top_p=0.9, seed=5)
SHARED = list(range(3, 23))
ASKED = [(SHARED, GREEDY), ([5, 1, 30], DRAWN), ([*SHARED[:17], 9, 9], DRAWN)]


@full
def test_answers_alone_in_company_from_the_cache_and_in_chunks(
    machine: Machine, tmp_path: Path
) -> None:
    """Of a model of two layers: tokens and log probabilities, to the bit."""
    raw = small_config(num_hidden_layers=2, torch_dtype="bfloat16", vocab_size=64)
    write_checkpoint(tmp_path, raw)
    backend, config = alike(machine), ModelConfig.from_dict(raw)
    weights = Checkpoint(tmp_path, config, dtype=BF16, device=backend.device)
    model = Model(config, backend, weights)

    def engine_of(**options: Any) -> Engine:
        promise = {"enable_deterministic_inference": True, "batch_invariant": True}
        return Engine(model, Words(), limits(**(promise | options)))

    with engine_of(enable_prefix_caching=False) as engine:
        alone = [engine.generate([one])[0] for one in ASKED]
    with engine_of() as engine:
        assert engine.generate(ASKED) == alone
        assert engine.generate(ASKED[::-1]) == alone[::-1]
        assert engine.stats().prefix_cache_hits >= 16 + 16
    with engine_of(max_num_batched_tokens=8) as engine:
        assert engine.generate(ASKED) == alone
