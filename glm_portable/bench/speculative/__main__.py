"""`python -m glm_portable.bench.speculative`: the command by itself."""

from glm_portable.bench.speculative.command import speculative

if __name__ == "__main__":
    speculative()
