"""A sample of the mutation test; `python -m glm_portable.virtual.cdna.mutation` is the whole."""

from dataclasses import replace
from pathlib import Path

import pytest

from glm_portable.virtual.cdna.mutants import IDLE, NEVER, SURVIVED, Kind, Trial
from glm_portable.virtual.cdna.subjects import subject


@pytest.fixture(scope="module")
def trial(tmp_path_factory: pytest.TempPathFactory) -> Trial:
    cache: Path = tmp_path_factory.mktemp("triton")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_CACHE_DIR", str(cache))
        return Trial(subject("RMS norm, quantised", "gfx942"))


@pytest.mark.parametrize("kind", ["barrier", "wait", "lds"])
def test_what_is_taken_out_is_missed(trial: Trial, kind: Kind) -> None:
    verdicts = [trial.judge(mutant, range(3)) for mutant in trial.mutants(kind, 3, seed=0)]
    counted = [v for v in verdicts if v.counts]
    assert len(counted) >= 2
    assert all(v.killed for v in counted), [v.mutant.text for v in counted if not v.killed]


def test_an_unharmed_program_survives(trial: Trial) -> None:
    mutant = trial.mutants("lds", 1, seed=0)[0]
    unharmed = replace(mutant, decoded=trial.code[mutant.index])
    assert trial.judge(unharmed, range(2)).outcome == SURVIVED


def test_what_is_never_executed_is_told_apart(trial: Trial) -> None:
    """The kernel's end is reached by every wave; nothing after it is."""
    kinds: tuple[Kind, ...] = ("wait", "lds", "mask")
    outcomes = {trial.judge(m, ()).outcome for kind in kinds for m in trial.mutants(kind, 0, 0)}
    assert outcomes <= {NEVER, IDLE}
