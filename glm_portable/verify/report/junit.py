"""A report as JUnit XML, as Jenkins, GitLab and GitHub's reporters read it.

A level is a testsuite, a check a testcase of the class `level.subject`. Unsupported and skipped
checks are skipped ones; which of the two is in the message. There are no errors: what cannot run
ends without a report.
"""

import xml.etree.ElementTree as ET
from collections.abc import Iterable, Mapping

from glm_portable.verify.report.meaning import why
from glm_portable.verify.report.text import figure, plain
from glm_portable.verify.results import Check, Report, Status


def dumps(report: Report) -> str:
    """The XML document."""
    root = ET.Element("testsuites", {"name": plain(report.title), **_totals(report.checks)})
    for level in dict.fromkeys(check.level for check in report.checks):
        _suite(root, level, [c for c in report.checks if c.level == level], report.about)
    ET.indent(root)
    declaration = '<?xml version="1.0" encoding="UTF-8"?>\n'
    return f"{declaration}{ET.tostring(root, encoding='unicode')}\n"


def _totals(checks: Iterable[Check]) -> dict[str, str]:
    statuses = [check.status for check in checks]
    skipped = statuses.count(Status.SKIPPED) + statuses.count(Status.UNSUPPORTED)
    return {
        "tests": f"{len(statuses)}",
        "failures": f"{statuses.count(Status.FAIL)}",
        "errors": "0",
        "skipped": f"{skipped}",
        "time": f"{sum(check.seconds for check in checks):.3f}",
    }


def _suite(root: ET.Element, level: str, checks: list[Check], about: Mapping[str, str]) -> None:
    suite = ET.SubElement(root, "testsuite", {"name": plain(level), **_totals(checks)})
    if about:
        properties = ET.SubElement(suite, "properties")
        for name, value in about.items():
            ET.SubElement(properties, "property", {"name": plain(name), "value": plain(value)})
    for check in checks:
        _case(suite, check)


def _case(suite: ET.Element, check: Check) -> None:
    attributes = {
        "classname": plain(f"{check.level}.{check.subject}"),
        "name": plain(check.name),
        "time": f"{check.seconds:.3f}",
    }
    case = ET.SubElement(suite, "testcase", attributes)
    if check.status is Status.FAIL:
        message = {"message": plain(check.findings[0]), "type": "finding"}
        failure = ET.SubElement(case, "failure", message)
        failure.text = plain("\n".join([*check.findings, *why(check)]))
    elif check.status is not Status.PASS:
        said = plain(f"{check.status}: {check.note or 'no reason given'}")
        ET.SubElement(case, "skipped", {"message": said})
    numbers = [f"{name} = {figure(value)}" for name, value in check.measures.items()]
    ran = [f"kernel {name} x {launches}" for name, launches in check.kernels.items()]
    note = [check.note] if check.note else []
    if lines := [*numbers, *ran, *note]:
        ET.SubElement(case, "system-out").text = plain("\n".join(lines))
