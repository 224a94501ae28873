"""`python -m glm_portable.bench FOLDER`: the command without the command line's options."""

import sys

from glm_portable.bench import run_bench

if __name__ == "__main__":
    run_bench(sys.argv[1] if len(sys.argv) > 1 else None)
