"""What an operator sees: condensed passes, failures in full, the verdict last."""

import io
import math

import pytest
from rich.console import Console

from glm_portable.verify.report import printed, show
from glm_portable.verify.results import Check, Report
from tests.verify.report.samples import SKIPPED, clean, layer, mixed, op


def shown(report: Report, width: int = 80) -> str:
    out = io.StringIO()
    show(report, Console(file=out, width=width, highlight=False))
    return out.getvalue()


def words(text: str) -> str:
    """Without the breaks of lines."""
    return " ".join(text.split())


def test_the_verdict_is_the_last_line() -> None:
    last = shown(mixed()).splitlines()[-1]
    assert last.startswith("FAIL  22 checks: 4 failed, 1 unsupported, 1 skipped, 16 passed in 2.8")
    assert shown(clean()).splitlines()[-1].startswith("PASS  4 checks: 1 skipped, 3 passed")


def test_nothing_checked_is_no_pass() -> None:
    assert shown(Report("ops", {}, [SKIPPED])).splitlines()[-1].startswith("NOTHING CHECKED  1 ch")
    assert shown(Report("ops", {}, [])).splitlines()[-1].startswith("NOTHING CHECKED  0 checks")


def test_passing_checks_are_one_line_a_subject() -> None:
    lines = shown(clean(), 120).splitlines()
    line = next(line for line in lines if " linear " in line)
    assert line.split() == "pass linear 2 0.90 of allowed, many grouped_gemm".split()
    assert sum("linear" in line for line in lines) == 1


def test_the_layers_of_a_model_are_one_line() -> None:
    lines = shown(Report("m", {}, [layer(i) for i in range(47)]), 120).splitlines()
    assert any(line.split()[:6] == "pass layer 0 to 46 47".split() for line in lines)
    assert sum("layer" in line for line in lines) == 1


def test_failures_are_in_full_with_why_they_matter() -> None:
    text = words(shown(mixed()))
    assert "FAIL ops linear: outliers error nan exceeds 0.01 (2 times plain PyTorch's)" in text
    assert "Why it matters: Attention projections, dense layers" in text
    assert "error nan, allowed 0.01, slope 1" in text and "grouped_gemm x 2" in text
    assert "FAIL model layer 6: 20 tokens layer 6: 4 of 20 tokens go to other experts" in text
    assert "Rounding does not explain these choices" in text
    assert "inf x allowed" in text


def test_reasons_are_given_once() -> None:
    text = words(shown(Report("ops", {}, [op("a"), SKIPPED, SKIPPED])))
    assert "skipped ops attend (2 checks): Needs 40 GB; 24 GB are here." in text
    assert "unsupported ops attend (1 check): No [fp8] cache here." in words(shown(mixed()))


def test_a_hostile_answer_does_not_reach_the_terminal() -> None:
    assert not set("\x1b\x00") & set(shown(mixed()))
    assert "<script>alert(1)</script>" in words(shown(mixed()))


@pytest.mark.parametrize("width", [80, 132])
def test_no_line_is_wider_than_the_terminal(width: int) -> None:
    assert max(map(len, shown(mixed(), width).splitlines())) <= width


def test_no_color_is_obeyed(monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.StringIO()
    monkeypatch.setenv("NO_COLOR", "1")
    show(mixed(), Console(file=out, width=80, force_terminal=True, color_system="truecolor"))
    assert "\x1b[31m" not in out.getvalue() and "\x1b[1;31m" not in out.getvalue()
    monkeypatch.delenv("NO_COLOR")
    show(mixed(), Console(file=out, width=80, force_terminal=True, color_system="truecolor"))
    assert "\x1b[1;31m" in out.getvalue()


@pytest.mark.parametrize("terminal", [False, True])
def test_checks_are_printed_as_they_come_and_handed_on(terminal: bool) -> None:
    out = io.StringIO()
    console = Console(file=out, width=200, force_terminal=terminal, no_color=True)
    seen: list[Check] = []
    for check in printed(mixed().checks, console, verbose=True):
        assert check.name in out.getvalue()
        seen.append(check)
    assert repr(seen) == repr(mixed().checks)
    lines = out.getvalue().splitlines()
    assert lines[0].startswith("pass   ops linear: 1 tokens")
    assert "  0.40 of allowed" in lines[0]
    assert len(lines) == len(seen)


def test_without_verbose_only_failures_are_printed() -> None:
    out = io.StringIO()
    list(printed([op("a"), op("b", math.inf)], Console(file=out, width=200)))
    assert out.getvalue().startswith("FAIL   ops linear: b  inf of allowed  error inf exceeds")
    assert len(out.getvalue().splitlines()) == 1


def test_a_terminal_shows_how_far_it_is() -> None:
    out = io.StringIO()
    console = Console(file=out, width=80, force_terminal=True, no_color=True)
    for _ in printed([op("a"), op("b")], console):
        pass
    assert "2 checks, now after ops linear: b" in out.getvalue()
