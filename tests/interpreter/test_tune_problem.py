"""What the tuner runs, in the interpreter: right tiles pass its check, a wrong result does not."""

from dataclasses import dataclass

import pytest
import torch

from glm_portable.kernels.launch import Launch
from glm_portable.kernels.target import Target
from glm_portable.kernels.tiles import Tile
from glm_portable.tune.candidates import candidates
from glm_portable.tune.problem import Problem
from glm_portable.tune.shapes import Job, Shape
from glm_portable.virtual.interpreter import launch


@dataclass
class Interpreter:
    name: str = "interpreter"
    device: torch.device = torch.device("cpu")
    target: Target = Target("gfx942")
    launch: Launch = launch


SMALL = Shape("small TP2", 4, 4, 128, 96, 2)
RANK = Shape("small EP2", 2, 4, 128, 96, 2)


@pytest.mark.parametrize(
    ("shape", "dtype", "down"),
    [
        (SMALL, "bfloat16", False),
        (SMALL, "fp8", True),
        (SMALL, "w8a16", False),
        (RANK, "bfloat16", True),
        (RANK, "fp8", False),
    ],
)
def test_right_tiles_pass_and_wrong_results_fail(shape: Shape, dtype: str, down: bool) -> None:
    job = Job(shape, down, dtype, 9)
    problem = Problem(job, Interpreter())
    for tile in candidates(job, problem.machine.target)[:3:2]:
        result = problem.prepare(tile)()
        assert problem.check(result) == []
        assert problem.check(result * 2) and problem.check(result.roll(1, -1))


def test_most_choices_are_other_ranks_under_expert_parallelism() -> None:
    problem = Problem(Job(RANK, False, "bfloat16", 9), Interpreter())
    chosen = problem.experts
    assert (chosen == 2).any() and (chosen < 2).any() and chosen.max() == 2
    assert problem.prepare(Tile(16, 32, 64, 1, {"num_warps": 4, "num_stages": 2}))().shape == (
        18,
        192,
    )
