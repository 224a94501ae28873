"""What ran: the backend's own words, the versions, the machine."""

import datetime
import importlib.metadata
import platform
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:  # importing it takes seconds, which --help need not
    import torch

ROOT = Path(__file__).parents[3]


class Backend(Protocol):
    """Of `ops.Ops`, what is needed here. It may have `describe() -> Mapping[str, str]`: its chip,
    driver and libraries, in the order to be shown."""

    name: str
    device: "torch.device"


def about(backend: Backend | None = None) -> dict[str, str]:
    """For `Report.about`; without a backend (of a server nothing is known) only this machine."""
    import torch

    found: dict[str, str] = {}
    if backend is not None:
        found["backend"] = backend.name
        describe = getattr(backend, "describe", None)
        said: Mapping[str, str] = describe() if describe else {"device": str(backend.device)}
        found |= said
    found["torch"] = torch.__version__
    found["glm-portable"] = importlib.metadata.version("glm-portable")
    if revision := _revision():
        found["revision"] = revision
    found["Python"] = platform.python_version()
    found["platform"] = f"{platform.system()} {platform.release()} {platform.machine()}"
    found["date"] = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
    return found


def _revision() -> str | None:
    """The commit of the checkout that runs, and whether files were changed since; None if this is
    no checkout, or git will not say."""
    if not (ROOT / ".git").exists() or shutil.which("git") is None:
        return None
    commit = _git("rev-parse", "--short=12", "HEAD")
    if commit is None:
        return None
    return f"{commit}, with changes" if _git("status", "--porcelain", "-uno") else commit


def _git(*arguments: str) -> str | None:
    done = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else None
