"""`glm-portable verify bisect A B` and `verify replay FOLDER`."""

from pathlib import Path
from typing import Any

import click

from glm_portable.options import config_option, option, simulate
from glm_portable.verify import report
from glm_portable.verify.model.command import format_option, seed_option, small_option

folder = click.Path(path_type=Path, file_okay=False)


@click.command()
@click.argument("a")
@click.argument("b")
@option("--model", help="Folder or hub id. [default: the pocket model]")
@small_option
@format_option
@option("--dtype", type=click.Choice(["auto", "bfloat16", "float32"]), default="auto",
        help="Of the activations; auto is the checkpoint's.")  # fmt: skip
@option("--prefill", type=click.IntRange(2), default=24,
        help="Tokens of the first prompt; the other steps are sized by it.")  # fmt: skip
@option("--page-size", type=click.IntRange(1), help="Slots of a KV page. [default: B's own]")
@seed_option
@option("--every-op", is_flag=True, help="Judge every op of every layer, and report all faults.")
@option("--quick", is_flag=True,
        help="Open no layer but the first that is beyond the rule.")  # fmt: skip
@option("--whole/--no-whole", default=None,
        help="Run it whole at the end. [default: if its weights are below 4 GB]")  # fmt: skip
@option("--out", type=folder, help="Where reproducers go. [default: bisect-A-B]")
@report.options
@config_option
def bisect(a: str, b: str, outputs: report.Outputs, **options: Any) -> None:
    """Find the first layer and op where backends A and B part beyond rounding.

    A and B are backends such as cpu or cuda, or NAME@CHIP for one on a simulated chip, such as
    rocm@gfx942. Every op of B is run on the inputs that A's had, and both are judged by float64 and
    by plain PyTorch in the same precision. Exit codes: 0 nothing found, 1 found, 3 it could not be
    run.
    """
    from glm_portable.verify.bisect.run import run_bisect

    raise SystemExit(run_bisect(a, b, outputs=outputs, **options))


@click.command()
@click.argument("reproducer", type=folder)
@option("--backend", help="Run it on this one, or NAME@CHIP. [default: the one that was wrong]")
@option("--virtual", metavar="CHIP", callback=simulate, help="Simulate this chip.")
@config_option
def replay(reproducer: Path, backend: str | None, virtual: str | None) -> None:
    """Run the call in the folder REPRODUCER alone, and say whether it is still wrong.

    Exit codes: 0 it passes, 1 it fails, 3 it could not be run.
    """
    from glm_portable.verify.bisect.run import run_replay

    raise SystemExit(run_replay(reproducer, backend, virtual))
