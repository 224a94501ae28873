"""What can be looked at on a machine before anything of it is used, and how a finding is put.

Nothing here imports torch: on a machine where something is missing that import may be what fails.
"""

import importlib.metadata
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

PATIENCE_S = 180.0
"""Of a fresh interpreter that imports torch and asks a driver."""


class Verdict(StrEnum):
    FINE = "fine"
    CHECK = "check"
    """It runs like this, but slower, or not in every setting."""
    MISSING = "missing"
    """The backend cannot run, or not with this."""


@dataclass(frozen=True)
class Finding:
    """One item: what was found, and what to do where that is not fine."""

    item: str
    found: str
    verdict: Verdict = Verdict.FINE
    advice: str = ""

    def __post_init__(self) -> None:
        assert (self.verdict is Verdict.FINE) == (not self.advice), f"{self=}"


def fine(item: str, found: str) -> Finding:
    return Finding(item, found)


def check(item: str, found: str, advice: str) -> Finding:
    return Finding(item, found, Verdict.CHECK, advice)


def missing(item: str, found: str, advice: str) -> Finding:
    return Finding(item, found, Verdict.MISSING, advice)


@dataclass(frozen=True)
class Answer:
    """What a fresh interpreter printed, or the last line of its error."""

    values: Mapping[str, Any] = field(default_factory=dict)
    error: str = ""


def version_of(distribution: str) -> str | None:
    """The version of an installed Python package; None if it is not installed."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def ask_python(code: str) -> Answer:
    """Run code that prints one JSON object last, in a fresh interpreter."""
    command = [sys.executable, "-c", code]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S)
    except subprocess.TimeoutExpired:
        return Answer(error=f"it did not end within {PATIENCE_S:.0f} seconds")
    if done.returncode:
        return Answer(error=_last_error(done.stderr) or f"it ended with code {done.returncode}")
    return Answer(json.loads(done.stdout.splitlines()[-1]))


def _last_error(stderr: str) -> str:
    """The first exception of a traceback, which is the cause of those that follow."""
    found = re.findall(r"^(?:\w+\.)*\w*(?:Error|Exception)\b: .*$", stderr, re.MULTILINE)
    lines = stderr.strip().splitlines()
    return str(found[0] if found else lines[-1] if lines else "")


@dataclass(frozen=True)
class Host:
    """A machine. Tests make one up: a folder as root, a mapping as environment, ..."""

    root: Path = Path("/")
    environment: Mapping[str, str] = field(default_factory=lambda: os.environ)
    version: Callable[[str], str | None] = version_of
    python: Callable[[str], Answer] = ask_python
    which: Callable[[str], str | None] = shutil.which
    accessible: Callable[[Path], bool] = lambda path: os.access(path, os.R_OK | os.W_OK)
    machine: str = platform.machine()
    python_version: tuple[int, int] = sys.version_info[:2]

    def path(self, absolute: str) -> Path:
        return self.root / absolute.lstrip("/")

    def exists(self, absolute: str) -> bool:
        return self.path(absolute).exists()

    def listed(self, folder: str, pattern: str) -> list[str]:
        """Names in a folder that match a regular expression, numbers in their order."""
        try:
            names = [entry.name for entry in self.path(folder).iterdir()]
        except OSError:
            return []
        chosen = [name for name in names if re.fullmatch(pattern, name)]
        return sorted(chosen, key=lambda name: (len(name), name))

    def read(self, absolute: str) -> str:
        """The text of a file; nothing if there is none."""
        try:
            return self.path(absolute).read_text(encoding="utf-8", errors="replace")
        except OSError:
            return ""

    def library(self, name: str) -> str | None:
        """Where LD_LIBRARY_PATH finds a library."""
        for folder in self.environment.get("LD_LIBRARY_PATH", "").split(":"):
            if folder and self.exists(f"{folder}/{name}"):
                return f"{folder}/{name}"
        return None


def gib(count: float) -> str:
    return f"{count / 2**30:,.1f} GiB"
