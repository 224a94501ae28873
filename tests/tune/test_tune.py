"""Tuning without a GPU: everything but the clock, which knows what each tile costs."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from torch import Tensor

from glm_portable import pocket
from glm_portable.cli import main
from glm_portable.config import ModelConfig
from glm_portable.errors import UsageError
from glm_portable.kernels import tiles
from glm_portable.kernels.target import Target
from glm_portable.kernels.tiles import Tile
from glm_portable.tune import command
from glm_portable.tune.candidates import MOST, candidates, rule
from glm_portable.tune.search import FINE, Search
from glm_portable.tune.shapes import PUBLISHED, Job, Model, jobs, shapes

GFX942 = Target("gfx942")
GLM45, AIR = PUBLISHED
SOURCE = {"device": "a card", "torch": "2.13", "triton": "3.9", "date": "2026-01-31"}


def pairs(dtype: str = "bfloat16", tokens: Sequence[int] = (16,)) -> list[tuple[Job, Job]]:
    return list(jobs(list(shapes(GLM45, [8], [])), [dtype], tokens))


class FakeWork:
    """Products that only say which tile they were started with."""

    def __init__(self, job: Job, started: list[tuple[Job, Tile]], bad: Callable[[Tile], str]):
        self.job, self.started, self.bad = job, started, bad

    def prepare(self, tile: Tile) -> Callable[[], Tensor]:
        if self.bad(tile) == "refused":
            raise RuntimeError("out of resources")

        def call() -> Tensor:
            self.started.append((self.job, tile))
            return torch.tensor(float(self.bad(tile) == "wrong"))

        return call

    def check(self, result: Tensor) -> list[str]:
        return ["error 1 exceeds 0.01"] if result else []


class FakeClock:
    """Calls each call once and looks up what the tile that it started costs."""

    def __init__(self, started: list[tuple[Job, Tile]], cost: Callable[[Tile], float]) -> None:
        self.started, self.cost = started, cost
        self.rounds: list[tuple[int, int]] = []

    def __call__(self, calls: Sequence[Callable[[], object]], rounds: int) -> list[float]:
        self.rounds.append((len(calls), rounds))
        return [self._time(call) for call in calls]

    def _time(self, call: Callable[[], object]) -> float:
        call()
        return self.cost(self.started[-1][1])


def search(
    cost: Callable[[Tile], float], bad: Callable[[Tile], str] = lambda tile: "", **known: Any
) -> Search:
    started: list[tuple[Job, Tile]] = []
    return Search(
        GFX942,
        lambda job: FakeWork(job, started, bad),
        FakeClock(started, cost),
        **known or {"known": {}},
    )


def cheapest(tile: Tile) -> Callable[[Tile], float]:
    return lambda other: 10.0 if other == tile else 40.0


def test_the_fastest_tile_is_found_and_down_follows_its_height() -> None:
    job, down = pairs()[0]
    target = candidates(job, GFX942)[-1]
    assert target != rule(job, GFX942)
    found = list(search(cheapest(target)).run([(job, down)], lambda: False))
    assert [o.job for o in found] == [job, down]
    assert (found[0].best, found[0].best_us, found[0].rule_us) == (target, 10.0, 40.0)
    assert found[1].best.block_m == target.block_m


def test_a_wrong_or_refused_tile_never_wins() -> None:
    job, _ = pairs()[0]
    fast, failing = candidates(job, GFX942)[3:5]

    def bad(tile: Tile) -> str:
        return {str(fast): "wrong", str(failing): "refused"}.get(str(tile), "")

    outcome = search(lambda tile: 1.0 if tile == fast else 40.0, bad).job(job, None)
    assert outcome is not None and outcome.best == rule(job, GFX942)
    assert outcome.wrong == (f"{fast}: error 1 exceeds 0.01",)
    assert outcome.refused == (f"{failing}: RuntimeError: out of resources",)


def test_a_gain_within_the_noise_keeps_the_rules_tile() -> None:
    job, _ = pairs()[0]
    other = candidates(job, GFX942)[5]
    for cost, best in ((39.5, rule(job, GFX942)), (38.0, other)):
        outcome = search(lambda t, cost=cost: cost if t == other else 40.0).job(job, None)  # type: ignore[misc]
        assert outcome is not None and outcome.best == best


def test_no_right_candidate_gives_no_line() -> None:
    found = list(search(lambda t: 1.0, lambda t: "wrong").run(pairs(), lambda: False))
    assert found == []


def test_only_the_best_are_timed_at_length() -> None:
    job, _ = pairs()[0]
    one = search(lambda t: float(t.block_n))
    one.job(job, None)
    clock = one.clock
    assert isinstance(clock, FakeClock)
    (rough, _), (final, rounds) = clock.rounds
    assert rough == len(candidates(job, GFX942)) and final <= 7 and rounds == FINE


def test_lines_are_written_merged_and_not_measured_again(tmp_path: Path, capsys: Any) -> None:
    path = tmp_path / "tables" / "gfx942.json"
    both = pairs(tokens=(16, 1024))
    slow = search(lambda t: 40.0 if t.block_n == 64 else 10.0 + t.block_k / 100)
    assert command.measure(slow, both[:1], path, SOURCE, lambda: False) == 2
    assert command.measure(slow, both[1:], path, SOURCE, lambda: False) == 2
    lines = tiles.read(path, GFX942)
    assert {x.tokens for x in lines} == {16, 1024} and len(lines) == 4
    assert lines[0].source["device"] == "a card" and lines[0].source["rule_us"] > 0
    known = command.known(path, GFX942, SOURCE)
    assert len(known) == 4
    assert command.known(path, GFX942, SOURCE | {"triton": "3.10"}) == {}
    resumed = search(lambda t: 1.0, known=known)
    assert command.measure(resumed, both, path, SOURCE, lambda: False) == 0
    clock = resumed.clock
    assert isinstance(clock, FakeClock) and not clock.rounds
    assert "measured before" in capsys.readouterr().out
    assert tiles.read(path, GFX942) == lines


def test_the_budget_ends_it_between_products(tmp_path: Path, capsys: Any) -> None:
    answers = iter([False, True])
    path = tmp_path / "gfx942.json"
    both = pairs(tokens=(16, 64))
    assert command.measure(search(lambda t: 1.0), both, path, SOURCE, lambda: next(answers)) == 1
    assert "3 products are left" in capsys.readouterr().out


@pytest.mark.parametrize("arch", ["gfx942", "gfx950", "sm_90", "sm_100"])
@pytest.mark.parametrize("dtype", ["bfloat16", "fp8", "w8a16"])
def test_candidates_fit_every_shape_of_the_models(arch: str, dtype: str) -> None:
    target = Target(arch)
    for model in PUBLISHED:
        for job in (j for pair in jobs(
            list(shapes(model, [1, 2, 4, 8], [8, 16])), [dtype], [1, 64, 4096]
        ) for j in pair):  # fmt: skip
            found = candidates(job, target)
            assert found[0] == rule(job, target) and 8 <= len(found) <= MOST
            assert len({str(tile) for tile in found}) == len(found)
            for tile in found:
                needed = tile.shared_bytes(target, *tiles.code_bytes(dtype))
                assert needed <= target.shared_limit, f"{tile} for {job}"
            only = candidates(job, target, block_m=32)
            assert {tile.block_m for tile in only} == {32}


def test_shapes_are_a_ranks_own() -> None:
    got = {s.name: (s.experts, s.width) for s in shapes(AIR, [1, 8], [16])}
    assert got == {
        "GLM-4.5-Air TP1": (128, 1408),
        "GLM-4.5-Air TP8": (128, 176),
        "GLM-4.5-Air EP16": (8, 1408),
    }
    ((gate_up, down),) = pairs()
    assert gate_up.key == (160, 384, 5120, "bfloat16", 16)
    assert down.key == (160, 5120, 192, "bfloat16", 16)
    with pytest.raises(UsageError, match="cannot be split over --tp 3: its moe_interm.* is 1408"):
        list(shapes(AIR, [3], []))
    assert Model.of("pocket", ModelConfig.load(pocket.FOLDER)).experts == 16


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--backend", "cpu"], "backend 'cpu' has no tiles to tune; run tune on a machine with a"),
        (["--backend", "rocm"], "backend 'rocm' needs a PyTorch built for ROCM"),
        (["--tp", "1,x"], "--tp '1,x' must be numbers such as 1,8"),
        (["--tp", "5"], "GLM-4.5 cannot be split over --tp 5"),
        (["--dtype", "int4"], "--dtype 'int4' is not one of bf16"),
        (["--tp", "", "--ep", ""], "nothing to measure"),
    ],
)
def test_what_cannot_be_tuned_is_one_sentence(
    arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.version, "hip", None)
    result = CliRunner().invoke(main, ["tune", *arguments])
    assert result.exit_code == 2 and message in result.stderr, result.output
