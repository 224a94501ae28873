"""Prints the example of docs/verify-bisect.md: python -m tests.verify.bisect.show [FOLDER]

The pocket model on the reference against a backend that is wrong in split decode steps.
"""

import sys
import tempfile
from pathlib import Path
from unittest import mock

from click.testing import CliRunner

from glm_portable.cli import main
from glm_portable.ops import Ops, load
from tests.verify.bisect.wrong_backends import SplitDecode, backend

WRONG = backend(SplitDecode())


def machine(name: str) -> Ops:
    return WRONG if name == "wrong" else load(name)


def run(*arguments: str) -> str:
    """A command line and what it prints."""
    with (
        mock.patch("glm_portable.verify.bisect.reproducer.machine", machine),
        mock.patch("glm_portable.verify.bisect.run.machine", machine),
    ):
        done = CliRunner(env={"COLUMNS": "100"}).invoke(main, ["verify", *arguments])
    return f"$ glm-portable verify {' '.join(arguments)}\n{done.output.rstrip()}"


def show(out: Path) -> None:
    print(run("bisect", "reference", "wrong", "--out", str(out)))
    folder = next(iter(sorted(out.iterdir())))
    print(f"\n{run('replay', str(folder))}")
    print(f"\n{run('replay', str(folder), '--backend', 'reference')}")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        show(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as temporary:
            show(Path(temporary) / "bisect-reference-wrong")
