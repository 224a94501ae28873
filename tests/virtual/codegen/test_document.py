"""docs/kernels.md holds every case, and its figures are those of a fresh compilation."""

from pathlib import Path

import pytest

from glm_portable.virtual.chips import CHIPS
from glm_portable.virtual.codegen import inspect, report
from glm_portable.virtual.codegen.cases import cases
from glm_portable.virtual.codegen.measure import Result

DOCUMENT = (Path(__file__).parents[3] / "docs" / "kernels.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("target", CHIPS)
def test_every_case_and_peer_has_its_row(target: str) -> None:
    for case in cases(target):
        start = report.line([case.kernel, case.configuration]).removesuffix("|")
        assert start in DOCUMENT
        assert all(f"| ({p.engine}) | {p.configuration} |" in DOCUMENT for p in case.peers)


@pytest.mark.parametrize(
    ("target", "kernel", "configuration"),
    [
        ("gfx942", "attend", "decode, bf16 pages of 64"),
        ("gfx942", "grouped_gemm", "as AITER medium_M, block, 128x128x128"),
        ("gfx950", "attend", "prefill, bf16 pages of 64"),
        ("gfx950", "grouped_gemm", "GLM-4.5 TP8 gate_up, 16 tokens, channel, 16x64x128"),
        ("sm_90", "grouped_gemm", "GLM-4.5 TP8 down, 16 tokens, bf16, 16x64x64"),
        ("sm_100", "silu_mul", "width 192 to FP8"),
    ],
)
def test_its_figures_are_those_of_a_fresh_compilation(
    target: str, kernel: str, configuration: str
) -> None:
    """Failing means: print the tables again with the command in the document."""
    case = next(c for c in cases(target) if (c.kernel, c.configuration) == (kernel, configuration))
    metrics = inspect(case.launch.kernel, case.launch.arguments, target, case.launch.options)
    assert report.line(report.rows(Result(case, metrics, []))[0]) in DOCUMENT


def test_tables_go_between_the_marks_and_nothing_else_changes() -> None:
    text = f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n"
    again = report.spliced(text, "new\n")
    assert again == f"before\n{report.BEGIN}\nnew\n{report.END}\nafter\n"
    assert report.spliced(again, "new\n") == again
