"""The command `glm-portable bench soak`."""

from pathlib import Path
from typing import Any

import click

from glm_portable.options import config_option, option


@click.command("soak")
@click.option("--base-url", default="http://127.0.0.1:8000", show_default=True)
@option("--minutes", type=float, default=20.0, help="Of load.")
@option("--clients", type=int, default=16, help="Requests at once.")
@click.option("--pid", type=int, help="The server's process, to watch its memory.")
@click.option("--model", help="[default: the first at /v1/models]")
@option("--api-key", help="The server's.")
@option("--warm-up-minutes", type=float, help="[default: a quarter of --minutes]")
@option("--max-drift", type=float, default=0.02, help="Growth of memory after it, as a share.")
@option("--max-unlike", type=float, default=0.01, help="Share of answers unlike those alone.")
@option("--evaluate-samples", type=int, default=10, help="A skill, before and after; 0: none.")
@option(
    "--json",
    "json_path",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write what was found here too.",
)
@config_option
def soak(**options: Any) -> None:
    """Minutes of mixed load on a server that serves a GLM; exit code 1 if anything went wrong.

    Streams, whole answers, clients that leave, tools, schemas, shared prefixes, seeds and lengths.
    Checked: errors, answers against those given alone, memory, pages and requests left over, and
    that `evaluate` scores the same before and after.
    """
    from glm_portable.bench.soak.execute import Options, run_bench_soak

    raise SystemExit(run_bench_soak(Options(**options)))
