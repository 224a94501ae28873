"""`glm-portable doctor`: what a machine has and lacks for each backend, item by item.

Every backend brings its own checks, a module of its name in `backends/_doctor/`, with `is_here`
(whether to look at all) and `examine`. They import no torch: its import may be what fails.
"""

import importlib
import json
import pkgutil
from collections.abc import Iterable, Mapping, Sequence
from types import ModuleType
from typing import Any

from rich.console import Console
from rich.table import Table

from glm_portable.errors import UsageError
from glm_portable.host import Finding, Host, Verdict

CHECKS = "glm_portable.backends._doctor"
NOTHING_MISSING, SOMETHING_MISSING = 0, 3
STYLES = {Verdict.FINE: "green", Verdict.CHECK: "yellow", Verdict.MISSING: "bold red"}
ALWAYS = "cpu"


def known() -> list[str]:
    """The backends that bring checks."""
    folders = importlib.import_module(CHECKS).__path__
    return sorted(m.name for m in pkgutil.iter_modules(folders) if not m.name.startswith("_"))


def examine(host: Host, backend: str = "auto") -> dict[str, list[Finding]]:
    """What was found for each backend that was looked at.

    "auto" looks at the CPU, and at every backend of which the machine has a sign. Raises
    UsageError for an unknown one.
    """
    names = known()
    if backend not in ("auto", *names):
        raise UsageError(f"backend {backend!r} is not one of auto, {', '.join(names)}.")
    wanted = names if backend == "auto" else sorted({ALWAYS, backend})
    modules = {name: _checks(name) for name in wanted}
    return {
        name: list(module.examine(host))
        for name, module in modules.items()
        if backend != "auto" or module.is_here(host)
    }


def _checks(name: str) -> ModuleType:
    return importlib.import_module(f"{CHECKS}.{name}")


def exit_code(found: Mapping[str, Iterable[Finding]]) -> int:
    gone = any(f.verdict is Verdict.MISSING for findings in found.values() for f in findings)
    return SOMETHING_MISSING if gone else NOTHING_MISSING


def as_json(found: Mapping[str, Sequence[Finding]]) -> str:
    backends: dict[str, list[dict[str, Any]]] = {
        name: [
            {"item": f.item, "found": f.found, "verdict": str(f.verdict), "advice": f.advice}
            for f in findings
        ]
        for name, findings in found.items()
    }
    return json.dumps({"backends": backends, "exit_code": exit_code(found)}, indent=1)


def print_tables(found: Mapping[str, Sequence[Finding]], console: Console) -> None:
    """A table for each backend, and a line that counts what is missing."""
    for name, findings in found.items():
        table = Table(title=name, title_justify="left")
        for heading in ("item", "found", "verdict", "what to do"):
            table.add_column(heading, overflow="fold")
        for f in findings:
            verdict = f"[{STYLES[f.verdict]}]{f.verdict}[/]"
            table.add_row(*map(_plain, (f.item, f.found)), verdict, _plain(f.advice))
        console.print(table)
    for name, findings in found.items():
        console.print(_summary(name, findings), markup=False)
    absent = [name for name in known() if name not in found]
    if absent:
        console.print(
            f"No sign of {', '.join(absent)} here: --backend NAME says what it would need.",
            markup=False,
        )


def _summary(name: str, findings: Sequence[Finding]) -> str:
    counts = {v: sum(f.verdict is v for f in findings) for v in Verdict}
    gone, doubtful = counts[Verdict.MISSING], counts[Verdict.CHECK]
    state = "nothing is missing" if not gone else f"{gone} of {len(findings)} items are missing"
    return f"{name}: {state}" + (f", {doubtful} to check." if doubtful else ".")


def _plain(text: str) -> str:
    return text.replace("[", r"\[")


def run_doctor(backend: str, json_wanted: bool, host: Host | None = None) -> int:
    """Look, print; returns the exit code: 3 if something is missing. Raises UsageError."""
    found = examine(host or Host(), backend)
    if json_wanted:
        print(as_json(found))
    else:
        print_tables(found, Console(highlight=False))
    return exit_code(found)
