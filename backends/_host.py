"""What a backend tells of the machine it runs on, for reports: see `describe` of each."""

import importlib.metadata
import platform
import re
from pathlib import Path


def processor(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """The processor's own name where the system tells it, else its architecture."""
    return found(cpuinfo, r"^model name\s*:\s*(.+)$") or platform.processor() or platform.machine()


def found(path: Path, pattern: str) -> str | None:
    """The pattern's group in a file of the system; None without the file or a match."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    match = re.search(pattern, text, re.MULTILINE)
    return match.group(1).strip() if match else None


def driver(path: Path, pattern: str) -> dict[str, str]:
    """{"driver": its version}, empty where the file that holds it is not there."""
    version = found(path, pattern)
    return {} if version is None else {"driver": version}


def versions(*packages: str) -> dict[str, str]:
    """Of those packages that are installed."""
    installed = {}
    for package in packages:
        try:
            installed[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return installed
