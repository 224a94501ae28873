"""The table of cases covers the kernels, and the command prints it and fails on a finding."""

import importlib
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from triton.runtime.jit import JITFunction

import glm_portable.virtual.codegen.__main__ as command
from glm_portable.errors import UsageError
from glm_portable.virtual.codegen import CHIPS, Expectation, inspect, measure, report
from glm_portable.virtual.codegen.cases import SUMMED, cases, everything, quick
from glm_portable.virtual.codegen.measure import Result, better_peers, findings
from glm_portable.virtual.codegen.peers import ATTENTION, PRODUCTS
from glm_portable.virtual.codegen.remarks import REMARKS
from tests.virtual.codegen.small_kernels import matmul, matmul_args

KERNELS = Path(__file__).parents[3] / "kernels"


def kernels() -> set[str]:
    """Every kernel in kernels/ that is launched; helpers start with an underscore or not end so."""
    found = set()
    for path in KERNELS.glob("*.py"):
        module = importlib.import_module(f"glm_portable.kernels.{path.stem}")
        found |= {n for n, v in vars(module).items() if isinstance(v, JITFunction)}
    return {name for name in found if name.endswith("_kernel")}


@pytest.mark.parametrize("target", CHIPS)
def test_every_kernel_has_a_case_on_every_chip(target: str) -> None:
    listed = list(cases(target))
    assert {case.launch.kernel.__name__ for case in listed} == kernels()
    assert all(case.target == target for case in listed)
    for case in listed:
        names = [p.name for p in case.launch.kernel.params]
        assert list(case.launch.arguments) == names, case.configuration


def test_every_peer_stands_beside_a_case_and_every_remark_has_one() -> None:
    listed = [case for target in CHIPS for case in cases(target)]
    beside = {peer for case in listed for peer in case.peers}
    assert beside == {*PRODUCTS, *(peer for rows in ATTENTION.values() for peer in rows)}
    assert set(REMARKS) <= {(case.target, case.configuration) for case in listed}


def test_a_row_is_judged_by_all_peers_at_its_tile() -> None:
    """vLLM and AITER both have 128 x 128 x 128 with block scales on gfx942: two bars for each."""
    row = next(c for c in cases("gfx942") if "as vLLM E128 N384 M1024" in c.configuration)
    assert {p.engine for p in row.peers} == {"vLLM", "AITER"}
    own = next(c for c in cases("gfx942") if c.group == "own tiles" and c.kind == "bf16, 16 rows")
    assert [p.configuration for p in own.peers] == ["E160 N192 M16"]


@pytest.mark.parametrize("target", CHIPS)
def test_a_quick_run_has_every_kernel_and_kind(target: str) -> None:
    everyone, few = list(everything(target)), list(quick(target))
    kinds = {(c.kernel, c.kind) for c in everyone if c.group not in SUMMED}
    assert [(c.kernel, c.kind) for c in few] == list(dict.fromkeys((c.kernel, c.kind) for c in few))
    assert {(c.kernel, c.kind) for c in few} == kinds and len(few) < len(everyone) / 4


def test_uneven_widths_and_all_quantisations_are_among_the_cases() -> None:
    launches = [c.launch.arguments for c in cases("gfx942") if c.kernel == "grouped_gemm"]
    assert {a["EVEN_K"] for a in launches} == {True, False}
    assert {(a["b_ptr"].dtype, a["A_SCALED"], a["B_ROWS"]) for a in launches} == {
        (torch.bfloat16, False, 0),
        (torch.float8_e4m3fnuz, True, 1),
        (torch.float8_e4m3fnuz, True, 128),
        (torch.float8_e4m3fnuz, False, 1),
    }


def test_the_command_prints_a_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "run", cache(command.run))  # compiled once, shown twice
    arguments = ["--target", "gfx942", "--kernel", "merge", "--processes", "1", "--quick"]
    done = CliRunner().invoke(command.main, [*arguments, "--markdown"])
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    assert "- Rows above the best peer: 0 of 0." in lines
    table = lines.index("### gfx942: attention")
    row = [cell.strip() for cell in lines[table + 4].strip("|").split("|")]
    assert row[0] == "merge" and len(row) == len(report.HEADINGS["hip"])
    assert "1 kernels compiled, 0 findings" in done.stderr
    plain = CliRunner().invoke(command.main, arguments)
    assert plain.exit_code == 0 and "merge" in plain.stdout and "VALU/MFMA" in plain.stdout


def test_the_command_fails_on_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "gate", lambda metrics, expectation: ["merge is odd."])
    done = CliRunner().invoke(
        command.main, ["--target", "gfx942", "--kernel", "merge", "--processes", "1"]
    )
    assert done.exit_code == 1 and "finding: merge is odd." in done.stderr


def test_wrong_input_to_the_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    document = tmp_path / "kernels.md"
    document.write_text("no place for tables")
    for arguments, text in (
        (["--target", "gfx90a"], "no chip is called 'gfx90a'"),
        (["--kernel", "nothing", "--target", "gfx942"], "no kernel's name contains 'nothing'"),
        (["--into", str(document), "--quick"], "--into takes the tables of a whole run"),
    ):
        done = CliRunner().invoke(command.main, arguments)
        assert done.exit_code == 2 and text in done.output
    with pytest.raises(UsageError, match="no lines"):
        report.spliced(document.read_text(), "")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    done = CliRunner().invoke(command.main, [])
    assert done.exit_code == 2 and "unset it" in done.output


def test_a_row_above_a_peer_needs_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    case = next(case for case in cases("gfx942") if case.peers)
    metrics = inspect(matmul, matmul_args(torch.bfloat16, (64, 64, 64)), "gfx942")
    peer = replace(case.peers[0], valu=1000)
    expected = Expectation(dialects=frozenset({"bf16"}), dword_loads=None)
    good = replace(case, expectation=expected, peers=(peer,))
    worse = replace(good, peers=(peer, replace(peer, valu=0)))
    assert findings(good, metrics) == []
    assert len(found := findings(worse, metrics)) == 1 and "asks for more than vLLM" in found[0]
    assert "Rows above the best peer: 1 of 2." in report.summary(
        [Result(good, metrics, []), Result(worse, metrics, found)]
    )
    for module in (measure, report):
        monkeypatch.setattr(module, "REMARKS", {(worse.target, worse.configuration): "Because."})
    assert findings(worse, metrics) == []
    assert report.remarks([Result(worse, metrics, [])])[0].endswith(": Because.")


def test_a_smaller_matrix_instruction_is_no_excuse() -> None:
    """More VALU for each instruction, fewer for each of its cycles: still above the peer."""
    metrics = inspect(matmul, matmul_args(torch.bfloat16, (64, 64, 64)), "gfx942")
    case = next(case for case in cases("gfx942") if case.peers)
    (name, count), valu = next(iter(metrics.loop.matrix.items())), metrics.loop.valu
    assert name == "32x32x8_bf16"
    half = replace(case.peers[0], matrix=("16x16x16_bf16", 2 * count), valu=valu)
    assert half.pressure == metrics.loop.pressure
    assert better_peers(replace(case, peers=(half,)), metrics) == [half]


def test_a_kernel_that_does_not_compile_is_a_finding_and_a_row() -> None:
    case = next(iter(cases("sm_90")))
    (section,) = report.sections([Result(case, None, ["does not compile"])])
    assert "does not compile" in section.rows[0]
    assert len(section.rows[0]) == len(section.headings)
