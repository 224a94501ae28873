"""`glm-portable bench`: speed, load time and memory beside transformers and the limits."""

from glm_portable.bench.command import run_bench

__all__ = ["run_bench"]
