"""One line and one picture for a README."""

import html
import xml.etree.ElementTree as ET
from pathlib import Path

from glm_portable.verify.report import badge, write
from glm_portable.verify.results import Report
from tests.verify.report.samples import ABOUT, SKIPPED, clean, mixed, op


def test_the_line_says_what_passed_on_what() -> None:
    line = badge(Report("ops", ABOUT, [op("a"), op("b")]))
    assert line.startswith("**glm-portable verify: PASS**, 2 checks: 2 passed; backend: virtual; ")
    assert r"chip: gfx942 \<simulated\> \| \`x\`; driver: 6.14; torch: 2.13.0;" in line
    assert "\n" not in line and "suite: " in line
    assert badge(mixed()).startswith("**glm-portable verify: FAIL**, 22 checks: 4 failed")


def test_the_suite_is_the_reports_own_or_a_hash_of_the_checks() -> None:
    def suite(report: Report) -> str:
        return badge(report).split("suite: ")[1]

    both = [op("a"), op("b")]
    assert suite(Report("x", {}, both)) == suite(Report("y", {}, both[::-1]))
    assert suite(Report("x", {}, both)) == suite(Report("x", {}, [op("a", 1.0), op("b")]))
    assert suite(Report("x", {}, both)) != suite(Report("x", {}, [op("a"), op("c")]))
    assert suite(Report("x", {"suite": "3f9a"}, both)) == "3f9a"


def test_what_nobody_reads_in_a_readme_is_left_out() -> None:
    line = badge(Report("x", {"Python": "3.11", "platform": "Linux", "torch": "2"}, [op("a")]))
    assert "3.11" not in line and "Linux" not in line and "torch: 2" in line


def test_the_picture_is_an_svg_that_says_the_same(tmp_path: Path) -> None:
    write(clean(), badge=tmp_path / "b.svg")
    root = ET.parse(tmp_path / "b.svg").getroot()
    assert root.tag.endswith("svg")
    said = "glm-portable verify: PASS on virtual, gfx942 <simulated> | `x`"
    assert root.attrib["aria-label"] == said
    texts = [text.text for text in root.iter("{http://www.w3.org/2000/svg}text")]
    assert texts == said.split(": ")
    assert "http" not in (tmp_path / "b.svg").read_text().replace("http://www.w3.org/2000/svg", "")


def test_any_other_name_is_markdown(tmp_path: Path) -> None:
    write(Report("x", {}, [SKIPPED]), badge=tmp_path / "b.md")
    line = html.unescape((tmp_path / "b.md").read_text())
    assert line.startswith("**glm-portable verify: NOTHING CHECKED**, 1 check: 1 skipped; suite: ")
