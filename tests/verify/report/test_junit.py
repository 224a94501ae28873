"""JUnit XML by the rules that Jenkins' and GitLab's readers hold it to."""

import re
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from glm_portable.verify.report import write
from glm_portable.verify.results import Report
from tests.verify.report.samples import HOSTILE, clean, mixed

ATTRIBUTES = {
    "testsuites": {"name", "tests", "failures", "errors", "skipped", "time"},
    "testsuite": {"name", "tests", "failures", "errors", "skipped", "time"},
    "properties": set(),
    "property": {"name", "value"},
    "testcase": {"classname", "name", "time"},
    "failure": {"message", "type"},
    "skipped": {"message"},
    "system-out": set(),
}
"""Of each element; all are required. So says the JUnit schema that Jenkins' plugin publishes."""
CHILDREN = {
    "testsuites": "(testsuite )*",
    "testsuite": "(properties )?(testcase )*",
    "properties": "(property )+",
    "testcase": "(skipped |failure )?(system-out )?",
}


def document(report: Report, folder: Path) -> ET.Element:
    write(report, junit=folder / "r.xml")
    return ET.parse(folder / "r.xml").getroot()


@pytest.mark.parametrize(
    "report", [mixed(), clean(), Report("empty", {}, [])], ids=["mixed", "clean", "empty"]
)
def test_the_document_keeps_to_the_schema(report: Report, tmp_path: Path) -> None:
    for element in document(report, tmp_path).iter():
        assert set(element.attrib) == ATTRIBUTES[element.tag]
        order = "".join(f"{child.tag} " for child in element)
        assert re.fullmatch(CHILDREN.get(element.tag, ""), order), (element.tag, order)
        for name in {"tests", "failures", "errors", "skipped"} & set(element.attrib):
            assert element.attrib[name].isdecimal()
        if "time" in element.attrib:
            assert re.fullmatch(r"\d+\.\d+", element.attrib["time"])


@pytest.mark.parametrize("report", [mixed(), clean()], ids=["mixed", "clean"])
def test_counts_are_of_what_is_there(report: Report, tmp_path: Path) -> None:
    root = document(report, tmp_path)
    for element in [root, *root.findall("testsuite")]:
        assert int(element.attrib["tests"]) == len(list(element.iter("testcase")))
        assert int(element.attrib["failures"]) == len(list(element.iter("failure")))
        assert int(element.attrib["skipped"]) == len(list(element.iter("skipped")))
    assert root.attrib["tests"] == str(len(report.checks))


def test_levels_are_suites_and_checks_are_cases(tmp_path: Path) -> None:
    root = document(mixed(), tmp_path)
    assert [suite.attrib["name"] for suite in root] == ["ops", "model", "endpoint"]
    case = next(case for case in root.iter("testcase") if case.attrib["name"] == "outliers")
    assert case.attrib["classname"] == "ops.linear" and case.attrib["time"] == "0.250"
    failure = case.find("failure")
    assert failure is not None and failure.text is not None
    assert failure.attrib["message"].startswith("error nan exceeds 0.01")
    assert "Attention projections" in failure.text
    assert "kernel grouped_gemm x 2" in (case.findtext("system-out") or "")
    said = [skipped.attrib["message"] for skipped in root.iter("skipped")]
    assert said == ["unsupported: No [fp8] cache here.", "skipped: Needs 40 GB; 24 GB are here."]
    properties = root.find("testsuite/properties")
    assert properties is not None
    assert {"name": "backend", "value": "virtual"} in [p.attrib for p in properties]


def test_hostile_text_stays_text(tmp_path: Path) -> None:
    root = document(mixed(), tmp_path)
    failure = list(root.iter("failure"))[-1]
    kept = HOSTILE.replace("\x1b", "\ufffd").replace("\x00", "\ufffd").replace("\ud800", "\ufffd")
    assert failure.attrib["message"] == f"the answer was {kept}"
