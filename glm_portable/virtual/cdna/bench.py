"""python -m glm_portable.virtual.cdna.bench: how fast this project's kernels are executed."""

import time

from rich.console import Console
from rich.table import Table

from glm_portable.virtual.compiler import settle


def main() -> None:
    """Print instructions per second of the processor's time, for each kernel and chip."""
    settle()
    from glm_portable.virtual.cdna.launcher import execute  # compiles: settle first
    from glm_portable.virtual.cdna.subjects import SUBJECTS, subject

    table = Table(title="instructions of a wave, all 64 lanes", title_justify="left")
    for column in ("kernel", "chip", "executed", "a second"):
        table.add_column(column, justify="left" if column in ("kernel", "chip") else "right")
    for arch in ("gfx942", "gfx950"):
        for name in SUBJECTS:
            kept = subject(name, arch)
            execute(kept.fresh(), kept.grid)  # decodes, which is kept
            copies, start = kept.fresh(), time.process_time()
            executed = execute(copies, kept.grid).total
            rate = executed / (time.process_time() - start)
            table.add_row(name, arch, f"{executed:,}", f"{rate:,.0f}")
    Console(highlight=False).print(table)


if __name__ == "__main__":
    main()
